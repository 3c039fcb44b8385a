//! A complete client: asks three questions in two conversations on one stream, and prints the answers as they come.
//!
//! Start a server first, then `cargo run --release --example client`.

use std::error::Error;

use turnflow::grpc::proto::conversations_client::ConversationsClient;
use turnflow::grpc::proto::converse_response::Event;
use turnflow::grpc::proto::{Channel, ConverseRequest, Turn};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let endpoint = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:7411".to_owned());
    let mut client = ConversationsClient::connect(endpoint).await?;

    let turns = [
        ("ada", "1", "How long does standard delivery take?"),
        ("ben", "1", "How many days does normal shipping take?"),
        ("ada", "2", "Can I return something I have already used?"),
    ];
    let requests = turns.map(|(conversation, turn, text)| ConverseRequest {
        turn: Some(Turn {
            conversation_id: conversation.to_owned(),
            turn_id: turn.to_owned(),
            channel: Channel::Web.into(),
            text: text.to_owned(),
            cache_control: None,
            deadline_ms: None,
        }),
    });

    let mut responses = client.converse(tokio_stream::iter(requests)).await?.into_inner();
    while let Some(response) = responses.message().await? {
        let turn = format!("{}/{}", response.conversation_id, response.turn_id);
        match response.event {
            Some(Event::Accepted(_)) => println!("{turn} accepted"),
            Some(Event::Delta(delta)) => println!("{turn} … {}", delta.text),
            Some(Event::Restart(_)) => println!("{turn} begins anew"),
            Some(Event::Done(done)) => {
                let verdict = done.verdict.unwrap_or_default();
                println!("{turn} done: {} [{:?}: {}]", done.text, verdict.level(), verdict.reason);
            }
            Some(Event::Error(error)) => println!("{turn} failed: {}", error.message),
            None => {}
        }
    }
    Ok(())
}
