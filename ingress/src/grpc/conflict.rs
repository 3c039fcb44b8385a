//! Why the knowledge base was not read or written as asked, as a status of a call or as an outcome of a stream.

use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use turnflow_state::WriteRefused;

use super::proto::{ArticleRefused, RefusalKind};
use crate::door::{Conflict, Refusal, describe};

/// Where a status tells the version that an article has.
pub const CURRENT_VERSION_KEY: &str = "turnflow-current-version";

/// The outcome of one article on a stream of many. What is not about the article is the status of the stream.
pub(super) fn outcome_of(conflict: Conflict) -> Result<ArticleRefused, Status> {
    match conflict {
        Conflict::Refusal(Refusal::Invalid { field, message }) => {
            let message = describe(field.as_deref(), &message);
            Ok(ArticleRefused { kind: RefusalKind::Invalid.into(), message, field, current_version: None })
        }
        Conflict::Version { article, refused, current } => {
            let kind = match refused {
                WriteRefused::VersionNotNewer { .. } => RefusalKind::VersionNotNewer,
                _ => RefusalKind::VersionMismatch,
            };
            let message = format!("article {article}: {refused}");
            Ok(ArticleRefused { kind: kind.into(), message, field: None, current_version: Some(current) })
        }
        other => Err(other.into()),
    }
}

impl From<Conflict> for Status {
    fn from(conflict: Conflict) -> Self {
        match conflict {
            Conflict::Refusal(refusal) => refusal.into(),
            Conflict::NotFound(article) => Self::not_found(format!("there is no article {article}")),
            Conflict::Version { article, refused, current } => {
                let kind = match refused {
                    WriteRefused::VersionNotNewer { .. } => "VERSION_NOT_NEWER",
                    _ => "VERSION_MISMATCH",
                };
                let message = format!("article {article}: {refused}");
                let violation = format!("current version {current}");
                let details = ErrorDetails::with_precondition_failure_violation(kind, article.as_str(), violation);
                let mut metadata = MetadataMap::new();
                metadata.insert(CURRENT_VERSION_KEY, MetadataValue::from(current));
                Self::with_error_details_and_metadata(Code::FailedPrecondition, message, details, metadata)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use turnflow_pipeline::PipelineError;
    use turnflow_state::ArticleId;

    use super::*;

    fn article() -> ArticleId {
        ArticleId::new("returns").expect("valid id")
    }

    #[test]
    fn a_conflict_tells_the_current_version_in_every_way() {
        let check = |refused: WriteRefused, kind: RefusalKind, message: &str| {
            let conflict = Conflict::of_draft(&article(), refused.into());
            let status = Status::from(conflict.clone());
            assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, message));
            let current = status.metadata().get(CURRENT_VERSION_KEY).expect("told").to_str().expect("text");
            assert_eq!(current, "5");
            let details = status.get_details_precondition_failure().expect("google.rpc.PreconditionFailure");
            let [violation] = details.violations.as_slice() else { panic!("{details:?}") };
            assert_eq!((violation.subject.as_str(), violation.description.as_str()), ("returns", "current version 5"));
            let outcome = outcome_of(conflict).expect("about the article");
            assert_eq!((outcome.kind(), outcome.message.as_str()), (kind, message));
            assert_eq!(outcome.current_version, Some(5));
        };
        check(
            WriteRefused::VersionMismatch { expected: 3, current: 5 },
            RefusalKind::VersionMismatch,
            "article returns: expected version 3, found version 5",
        );
        check(
            WriteRefused::VersionNotNewer { given: 4, current: 5 },
            RefusalKind::VersionNotNewer,
            "article returns: version 4 is not greater than 5, the last that the article had",
        );
    }

    #[test]
    fn what_is_not_about_the_article_ends_the_stream() {
        let code = |conflict: Conflict| outcome_of(conflict).expect_err("not about the article").code();
        assert_eq!(code(PipelineError::ShuttingDown.into()), Code::Unavailable);
        assert_eq!(code(Conflict::NotFound(article())), Code::NotFound);
    }
}
