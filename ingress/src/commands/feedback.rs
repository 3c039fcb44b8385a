//! `turnflow feedback`: tells a running server whether the answer to a turn was right.

use serde::Serialize;

use super::{Context, reach};
use crate::cli::{FeedbackArgs, JudgementArg};
use crate::failure::Failure;
use crate::grpc::proto::conversations_client::ConversationsClient;
use crate::grpc::proto::{FeedbackRequest, Judgement};

/// What came of it.
#[derive(Serialize)]
struct Given {
    counted: bool,
}

/// Gives the judgement to the server.
///
/// # Errors
/// When no server answers, or it knows no such turn.
pub(super) async fn run(context: &Context, args: FeedbackArgs) -> Result<(), Failure> {
    let judgement = match args.judgement {
        JudgementArg::Good => Judgement::Good,
        JudgementArg::Wrong => Judgement::Wrong,
    };
    let request =
        FeedbackRequest { conversation_id: args.conversation, turn_id: args.turn, judgement: judgement.into() };
    let (connection, _) = reach::running(context, args.endpoint, &args.access.into()).await?;
    let mut client = ConversationsClient::new(connection);
    let response = client.feedback(request).await.map_err(|status| reach::refused(&status))?;
    let counted = response.into_inner().counted;
    let text = if counted {
        "counted\n"
    } else {
        "not counted: the answer has nothing to do with the caches, or it was judged before\n"
    };
    context.print(&Given { counted }, text)
}
