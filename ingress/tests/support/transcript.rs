//! What one `Converse` stream said, checked while it is written down.

use std::collections::HashMap;

use turnflow::grpc::proto::converse_response::Event;
use turnflow::grpc::proto::{ConverseResponse, Done, Error};

/// A turn's conversation and id.
pub type Name = (String, String);

/// How a turn ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    Done(Box<Done>),
    Error(Error),
}

#[derive(Default)]
struct Heard {
    accepted: bool,
    streamed: String,
    end: Option<End>,
}

/// The events of a stream, by turn. Panics when a turn's events are out of order.
#[derive(Default)]
pub struct Transcript {
    turns: HashMap<Name, Heard>,
    /// Turns in the order they were accepted.
    accepted: Vec<Name>,
    /// Turns in the order they ended.
    pub ended: Vec<Name>,
}

impl Transcript {
    /// Writes down a response.
    pub fn hear(&mut self, response: ConverseResponse) {
        let name = (response.conversation_id, response.turn_id);
        let heard = self.turns.entry(name.clone()).or_default();
        assert!(heard.end.is_none(), "an event after the terminal one of {name:?}: {:?}", response.event);
        match response.event.expect("an event") {
            Event::Accepted(_) => {
                assert!(!heard.accepted && heard.streamed.is_empty(), "{name:?} is accepted late or again");
                heard.accepted = true;
                self.accepted.push(name);
            }
            Event::Delta(delta) => {
                assert!(heard.accepted, "a delta of {name:?} before it was accepted");
                heard.streamed.push_str(&delta.text);
            }
            Event::Restart(_) => heard.streamed.clear(),
            Event::Done(done) => {
                assert!(heard.accepted, "{name:?} was never accepted");
                assert!(heard.streamed.is_empty() || heard.streamed == done.text, "{name:?}: {:?}", heard.streamed);
                heard.end = Some(End::Done(Box::new(done)));
                self.ended.push(name);
            }
            Event::Error(error) => {
                heard.end = Some(End::Error(error));
                self.ended.push(name);
            }
        }
    }

    /// Listens to the stream's end.
    pub async fn listen(&mut self, responses: &mut tonic::Streaming<ConverseResponse>) -> Result<(), tonic::Status> {
        while let Some(response) = responses.message().await? {
            self.hear(response);
        }
        Ok(())
    }

    /// Whether the turn was accepted.
    pub fn has_accepted(&self, conversation: &str, turn: &str) -> bool {
        self.turns.get(&(conversation.to_owned(), turn.to_owned())).is_some_and(|heard| heard.accepted)
    }

    /// How a turn ended.
    pub fn end(&self, conversation: &str, turn: &str) -> &End {
        let name = (conversation.to_owned(), turn.to_owned());
        let heard = self.turns.get(&name).unwrap_or_else(|| panic!("nothing was heard of {name:?}"));
        heard.end.as_ref().unwrap_or_else(|| panic!("{name:?} did not end"))
    }

    /// The answer of a turn.
    pub fn done(&self, conversation: &str, turn: &str) -> &Done {
        match self.end(conversation, turn) {
            End::Done(done) => done,
            End::Error(error) => panic!("{conversation}/{turn} failed: {error:?}"),
        }
    }

    /// The turns of a conversation in the order they were accepted, and in the order they ended.
    pub fn orders_of(&self, conversation: &str) -> [Vec<&str>; 2] {
        [&self.accepted, &self.ended]
            .map(|names| names.iter().filter(|(of, _)| of == conversation).map(|(_, turn)| turn.as_str()).collect())
    }
}
