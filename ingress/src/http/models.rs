//! The names that a request's `model` may have.

use std::sync::Arc;

use axum::extract::State;
use serde_json::{Value, json};
use turnflow_pipeline::{Config, OtherModels};
use turnflow_state::TierSize;

use super::error::ApiError;
use super::receive::{ForChat, Id};
use super::reply::JsonReply;
use super::router::App;

/// Turnflow as a whole: caches first, then the tier that routing chooses.
const TURNFLOW: &str = "turnflow";
/// The small tier alone.
const SMALL: &str = "turnflow-small";
/// The large tier alone.
const LARGE: &str = "turnflow-large";

/// `GET /v1/models`.
pub(super) async fn list(State(app): State<Arc<App>>, ForChat(_): ForChat) -> JsonReply {
    let models: Vec<Value> = names(&app.config, &app.encoder).into_iter().map(|name| model(&app, &name)).collect();
    JsonReply(json!({ "object": "list", "data": models }))
}

/// `GET /v1/models/{id}`.
pub(super) async fn get(State(app): State<Arc<App>>, ForChat(_): ForChat, Id(id): Id) -> Result<JsonReply, ApiError> {
    let name = names(&app.config, &app.encoder).into_iter().find(|name| *name == id).ok_or_else(|| unknown(&id))?;
    Ok(JsonReply(model(&app, &name)))
}

fn names(config: &Config, encoder: &str) -> Vec<String> {
    let tiers: &[&str] = if config.routing.enabled { &[SMALL, LARGE] } else { &[] };
    [&[TURNFLOW], tiers, &[encoder]].concat().into_iter().map(str::to_owned).collect()
}

fn model(app: &App, name: &str) -> Value {
    json!({ "id": name, "object": "model", "created": app.started_s, "owned_by": "turnflow" })
}

/// The tier that a name stands for, beside an encoder's name; None for whichever answers.
pub(super) fn tier_of(name: &str, config: &Config, encoder: &str) -> Result<Option<TierSize>, ApiError> {
    match name {
        TURNFLOW => Ok(None),
        SMALL if config.routing.enabled => Ok(Some(TierSize::Small)),
        LARGE if config.routing.enabled => Ok(Some(TierSize::Large)),
        _ if name == encoder => {
            let error =
                ApiError::not_found("model_not_found", format!("the model {name} makes embeddings, and does not chat"));
            Err(ApiError { param: Some("model".to_owned()), ..error })
        }
        _ if config.http.other_models == OtherModels::Answer => Ok(None),
        _ => Err(unknown(name)),
    }
}

/// Checks the name of the model that makes embeddings.
pub(super) fn check_encoder(name: &str, config: &Config, encoder: &str) -> Result<(), ApiError> {
    if name == encoder || config.http.other_models == OtherModels::Answer { Ok(()) } else { Err(unknown(name)) }
}

fn unknown(name: &str) -> ApiError {
    let error =
        ApiError::not_found("model_not_found", format!("there is no model {name:?}; GET /v1/models lists them"));
    ApiError { param: Some("model".to_owned()), ..error }
}

#[cfg(test)]
mod tests {
    use turnflow_models::{EncoderConfig, MODEL_NAME};

    use super::*;

    #[test]
    fn tiers_have_names_where_there_are_two() {
        let mut config = Config::defaults();
        assert_eq!(
            (tier_of("gpt-4o", &config, MODEL_NAME).ok(), check_encoder("gpt-4o", &config, MODEL_NAME).is_ok()),
            (Some(None), true)
        );
        config.http.other_models = OtherModels::Refuse;
        let found = |name: &str, config: &Config| {
            tier_of(name, config, MODEL_NAME).map_err(|error| (error.status.as_u16(), error.code))
        };
        let missing = Err((404, "model_not_found"));
        assert_eq!(names(&config, MODEL_NAME), ["turnflow", MODEL_NAME]);
        assert_eq!(found("turnflow", &config), Ok(None));
        for name in ["turnflow-small", "turnflow-large", "gpt-4o", "", MODEL_NAME] {
            assert_eq!(found(name, &config), missing, "{name}");
        }
        config.routing.enabled = true;
        assert_eq!(names(&config, MODEL_NAME), ["turnflow", "turnflow-small", "turnflow-large", MODEL_NAME]);
        assert_eq!(found("turnflow-small", &config), Ok(Some(TierSize::Small)));
        assert_eq!(found("turnflow-large", &config), Ok(Some(TierSize::Large)));
        let is_encoder = |name: &str, encoder: &str| check_encoder(name, &config, encoder).is_ok();
        assert!(is_encoder(MODEL_NAME, MODEL_NAME) && !is_encoder("turnflow", MODEL_NAME));
        for (model, name) in [("org/encoder", "org/encoder"), ("/srv/models/encoder", "encoder")] {
            let encoder = EncoderConfig { model: model.into(), ..EncoderConfig::default() }.name();
            assert_eq!(names(&config, &encoder).last().map(String::as_str), Some(name));
            assert!(is_encoder(name, &encoder) && !is_encoder(MODEL_NAME, &encoder));
        }
    }
}
