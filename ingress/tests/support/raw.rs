//! Calls with messages that no generated client would send.

use std::marker::PhantomData;

use prost::Message;
use prost::bytes::BufMut;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstDecoder;
use turnflow::grpc::proto::{AskResponse, ConverseResponse};

/// Sends bytes as they are, and decodes what comes back.
struct RawCodec<U>(PhantomData<U>);

impl<U: Message + Default + 'static> Codec for RawCodec<U> {
    type Encode = Vec<u8>;
    type Decode = U;
    type Encoder = RawEncoder;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> RawEncoder {
        RawEncoder
    }

    fn decoder(&mut self) -> ProstDecoder<U> {
        ProstDecoder::default()
    }
}

struct RawEncoder;

impl Encoder for RawEncoder {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

/// Calls `Ask` with one message of these bytes.
pub async fn ask(channel: Channel, message: Vec<u8>) -> Result<Streaming<AskResponse>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.expect("connected");
    let path = PathAndQuery::from_static("/turnflow.v1.Conversations/Ask");
    Ok(grpc.server_streaming(Request::new(message), path, RawCodec(PhantomData)).await?.into_inner())
}

/// Calls `Converse` with messages of these bytes.
pub async fn converse(channel: Channel, messages: Vec<Vec<u8>>) -> Result<Streaming<ConverseResponse>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.expect("connected");
    let path = PathAndQuery::from_static("/turnflow.v1.Conversations/Converse");
    let messages = Request::new(tokio_stream::iter(messages));
    Ok(grpc.streaming(messages, path, RawCodec(PhantomData)).await?.into_inner())
}
