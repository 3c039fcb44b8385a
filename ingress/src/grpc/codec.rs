//! The codec of the service: protobuf as prost has it, with errors that blame the side at fault.
//!
//! Tonic answers a request that prost cannot decode with INTERNAL, which tells the client to wait for us. A request
//! that is not a valid message is the client's mistake and fails the same way again, so [`BlamingCodec`] answers
//! INVALID_ARGUMENT and names the field. On the client's side the same failure is the server's mistake.

use std::marker::PhantomData;

use prost::{DecodeError, Message};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

use super::proto::{
    AskRequest, AskResponse, BackupRequest, BackupResponse, ConverseRequest, ConverseResponse, DeleteRequest,
    DeleteResponse, DrainRequest, DrainResponse, FeedbackRequest, FeedbackResponse, FlushRequest, FlushResponse,
    GetEntryRequest, GetEntryResponse, GetRequest, GetResponse, ImportRequest, ImportResponse, ListEntriesRequest,
    ListEntriesResponse, ListRequest, ListResponse, SearchRequest, SearchResponse, StatsRequest, StatsResponse,
    UpsertRequest, UpsertResponse, WatchRequest, WatchResponse,
};
use crate::door::Refusal;

/// Messages that come in over the wire, and whom to blame when one cannot be decoded.
pub trait Inbound: Message + Default + 'static {
    /// What the side that decodes makes of the failure.
    fn undecodable(error: &DecodeError) -> Status;
}

macro_rules! inbound {
    ($($message:ty => $blame:path),+ $(,)?) => {
        $(impl Inbound for $message {
            fn undecodable(error: &DecodeError) -> Status {
                $blame(error)
            }
        })+
    };
}

inbound! {
    AskRequest => blame_client,
    BackupRequest => blame_client,
    ConverseRequest => blame_client,
    DeleteRequest => blame_client,
    DrainRequest => blame_client,
    FeedbackRequest => blame_client,
    FlushRequest => blame_client,
    GetRequest => blame_client,
    GetEntryRequest => blame_client,
    ImportRequest => blame_client,
    ListRequest => blame_client,
    ListEntriesRequest => blame_client,
    SearchRequest => blame_client,
    StatsRequest => blame_client,
    UpsertRequest => blame_client,
    WatchRequest => blame_client,
    AskResponse => blame_server,
    BackupResponse => blame_server,
    ConverseResponse => blame_server,
    DeleteResponse => blame_server,
    DrainResponse => blame_server,
    FeedbackResponse => blame_server,
    FlushResponse => blame_server,
    GetResponse => blame_server,
    GetEntryResponse => blame_server,
    ImportResponse => blame_server,
    ListResponse => blame_server,
    ListEntriesResponse => blame_server,
    SearchResponse => blame_server,
    StatsResponse => blame_server,
    UpsertResponse => blame_server,
    WatchResponse => blame_server,
}

fn blame_client(error: &DecodeError) -> Status {
    let (field, message) = split_path(&error.to_string());
    Refusal::Invalid { field, message }.into()
}

fn blame_server(error: &DecodeError) -> Status {
    Status::internal(error.to_string())
}

/// Splits prost's text, `failed to …: Turn.text: AskRequest.turn: invalid string …`, into the path from the request,
/// `turn.text`, and the rest. Prost keeps the path to itself, so its text is the only source; it lists the innermost
/// field first.
fn split_path(text: &str) -> (Option<String>, String) {
    let mut parts = text.split(": ").skip(1).peekable();
    let mut path: Vec<&str> = Vec::new();
    while let Some(field) = parts.peek().and_then(|part| field_of(part)) {
        path.insert(0, field);
        parts.next();
    }
    let rest = parts.collect::<Vec<_>>().join(": ");
    let field = (!path.is_empty()).then(|| path.join("."));
    (field, if rest.is_empty() { text.to_owned() } else { rest })
}

/// The field of `Message.field`.
fn field_of(part: &str) -> Option<&str> {
    let is_name = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    part.split_once('.').filter(|(message, field)| is_name(message) && is_name(field)).map(|(_, field)| field)
}

/// Encodes `T` and decodes `U` as protobuf.
#[derive(Clone, Debug)]
pub struct BlamingCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BlamingCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + 'static, U: Inbound> Codec for BlamingCodec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BlamingDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        BlamingDecoder(PhantomData)
    }
}

/// Decodes `U` from protobuf.
#[derive(Clone, Debug)]
pub struct BlamingDecoder<U>(PhantomData<U>);

impl<U: Inbound> Decoder for BlamingDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        U::decode(buffer).map(Some).map_err(|error| U::undecodable(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prosts_text_is_split_into_path_and_reason() {
        let check = |bytes: &[u8], field: Option<&str>, reason: &str| {
            let error = AskRequest::decode(bytes).expect_err("not a message");
            assert_eq!(split_path(&error.to_string()), (field.map(str::to_owned), reason.to_owned()), "{bytes:?}");
        };
        let not_utf8 = "invalid string value: data is not UTF-8 encoded";
        // Field 1 of the request is the turn; fields 1 and 4 of a turn are the conversation and the text.
        check(&[0x0a, 3, 0x22, 1, 0xff], Some("turn.text"), not_utf8);
        check(&[0x0a, 3, 0x0a, 1, 0xff], Some("turn.conversation_id"), not_utf8);
        check(&[0x08, 1], Some("turn"), "invalid wire type: Varint (expected LengthDelimited)");
        check(&[0x00], None, "invalid tag value: 0");
        check(&[0x0a, 9], Some("turn"), "buffer underflow");
    }

    #[test]
    fn blame_follows_the_direction() {
        let error = AskRequest::decode(&[0x00][..]).expect_err("not a message");
        assert_eq!(AskRequest::undecodable(&error).code(), tonic::Code::InvalidArgument);
        assert_eq!(AskResponse::undecodable(&error).code(), tonic::Code::Internal);
    }
}
