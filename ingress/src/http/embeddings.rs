//! `POST /v1/embeddings`: texts as the vectors by which Turnflow compares questions, and articles with them.

use std::sync::Arc;

use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use turnflow_models::InputType;

use super::error::ApiError;
use super::models::check_encoder;
use super::receive::{ForChat, Json};
use super::reply::JsonReply;
use super::router::App;
use crate::door::{Amounts, estimate, text};

/// The body of a request.
#[derive(Debug, Deserialize)]
pub(super) struct EmbeddingsRequest {
    model: String,
    input: Value,
    #[serde(default)]
    encoding_format: Option<String>,
    #[serde(default)]
    dimensions: Option<usize>,
    #[serde(default)]
    input_type: Option<String>,
}

/// How the numbers of a vector are written.
#[derive(Clone, Copy)]
enum Encoding {
    Float,
    /// Of the numbers as little-endian bytes.
    Base64,
}

impl Encoding {
    fn named(name: Option<&str>) -> Result<Self, ApiError> {
        match name {
            None | Some("float") => Ok(Self::Float),
            Some("base64") => Ok(Self::Base64),
            Some(other) => {
                Err(ApiError::invalid("encoding_format", format!("unknown value {other:?}, expected float or base64")))
            }
        }
    }

    fn write(self, vector: &[f32]) -> Value {
        match self {
            Self::Float => json!(vector),
            Self::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
                json!(STANDARD.encode(bytes))
            }
        }
    }
}

/// `POST /v1/embeddings`.
pub(super) async fn embed(
    State(app): State<Arc<App>>,
    ForChat(caller): ForChat,
    Json(request): Json<EmbeddingsRequest>,
) -> Result<JsonReply, ApiError> {
    let EmbeddingsRequest { model, input, encoding_format, dimensions, input_type } = request;
    check_encoder(&model, &app.config, &app.encoder)?;
    let encoding = Encoding::named(encoding_format.as_deref())?;
    let kind = kind_named(input_type.as_deref())?;
    let texts = texts(input, app.config.http.inputs_max, app.config.limits.text_bytes_max)?;
    let estimated = estimate(texts.iter().map(String::as_str)).into();
    let charge = caller.take(Amounts { tokens: estimated, ..Amounts::default() })?;
    let knowledge = app.knowledge.clone();
    let embedded = app.work(async move { knowledge.embed(kind, texts).await }).await;
    let embedded = embedded.and_then(|done| done.map_err(ApiError::from));
    let embedded = embedded.inspect_err(|_| charge.bill().settle(0, 0))?;
    charge.bill().settle(embedded.tokens as u64, 0);
    let size = embedded.vectors.first().map_or(0, |vector| vector.len());
    if dimensions.is_some_and(|wanted| wanted != size) {
        return Err(ApiError::unsupported("dimensions", format!("vectors have {size} numbers")));
    }
    let data =
        embedded.vectors.iter().enumerate().map(
            |(index, vector)| json!({ "object": "embedding", "index": index, "embedding": encoding.write(vector) }),
        );
    let data: Vec<Value> = data.collect();
    let usage = json!({ "prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens });
    Ok(JsonReply(json!({ "object": "list", "data": data, "model": model, "usage": usage })))
}

/// What the texts are to encoders that tell what asks from what answers: questions, unless they are said to be something else.
fn kind_named(name: Option<&str>) -> Result<InputType, ApiError> {
    match name {
        None | Some("query") => Ok(InputType::Query),
        Some("passage") => Ok(InputType::Passage),
        Some(other) => {
            Err(ApiError::invalid("input_type", format!("unknown value {other:?}, expected query or passage")))
        }
    }
}

/// The texts of an input: one, or a list.
fn texts(input: Value, inputs_max: usize, bytes_max: usize) -> Result<Vec<String>, ApiError> {
    let (inputs, is_list) = match input {
        Value::Array(inputs) => (inputs, true),
        one => (vec![one], false),
    };
    if inputs.is_empty() || inputs.len() > inputs_max {
        return Err(ApiError::invalid("input", format!("{} texts, 1 to {inputs_max} are allowed", inputs.len())));
    }
    let read = |(at, input): (usize, Value)| {
        let field = if is_list { format!("input[{at}]") } else { "input".to_owned() };
        match input {
            Value::String(input) => Ok(text(&field, input, bytes_max)?),
            Value::Number(_) | Value::Array(_) => {
                Err(ApiError::unsupported(&field, "tokens are not read, only text is"))
            }
            _ => Err(ApiError::invalid(field, "a text is expected")),
        }
    };
    inputs.into_iter().enumerate().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_a_text_or_a_list_of_them() {
        let read = |input: Value| texts(input, 2, 8).map_err(|error| error.param.unwrap_or_default());
        assert_eq!(read(json!("a")), Ok(vec!["a".to_owned()]));
        assert_eq!(read(json!(["a", "b"])), Ok(vec!["a".to_owned(), "b".to_owned()]));
        for (input, param) in [
            (json!([]), "input"),
            (json!(["a", "b", "c"]), "input"),
            (json!(["a", ""]), "input[1]"),
            (json!("far too long"), "input"),
            (json!([1, 2]), "input[0]"),
            (json!({}), "input"),
        ] {
            assert_eq!(read(input.clone()), Err(param.to_owned()), "{input}");
        }
    }

    #[test]
    fn texts_are_questions_unless_they_are_said_to_be_something_else() {
        let check = |name: Option<&str>, expected: Result<InputType, &str>| {
            assert_eq!(
                kind_named(name).map_err(|error| error.param.unwrap_or_default()),
                expected.map_err(str::to_owned)
            );
        };
        check(None, Ok(InputType::Query));
        check(Some("query"), Ok(InputType::Query));
        check(Some("passage"), Ok(InputType::Passage));
        check(Some("document"), Err("input_type"));
    }

    #[test]
    fn base64_is_of_little_endian_bytes() {
        assert_eq!(Encoding::Base64.write(&[1.0, -2.5]), json!("AACAPwAAIMA="));
        assert_eq!(Encoding::Float.write(&[1.0, -2.5]), json!([1.0, -2.5]));
    }
}
