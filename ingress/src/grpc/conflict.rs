//! Why the knowledge base was not read or written as asked, as a status of a call or as an outcome of a stream.

use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use turnflow_pipeline::{DraftError, PipelineError};
use turnflow_state::{ArticleId, WriteRefused};

use super::proto::{ArticleRefused, RefusalKind};
use super::refusal::{Refusal, describe};

/// Where a status tells the version that an article has.
pub const CURRENT_VERSION_KEY: &str = "turnflow-current-version";

/// Why the knowledge base was not read or written as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Conflict {
    /// What every call can be refused for.
    Refusal(Refusal),
    /// The article's version is not as it should be.
    Version {
        /// Which article.
        article: ArticleId,
        /// What was asked, and what is there.
        refused: WriteRefused,
        /// The version that is there.
        current: u64,
    },
    /// There is no such article.
    NotFound(ArticleId),
}

impl Conflict {
    /// A field of the request is at fault.
    pub(super) fn invalid(field: &str, message: impl Into<String>) -> Self {
        Refusal::Invalid { field: Some(field.to_owned()), message: message.into() }.into()
    }

    /// An article was not written.
    pub(super) fn of_draft(article: &ArticleId, error: DraftError) -> Self {
        match error {
            DraftError::Refused(WriteRefused::NotFound) => Self::NotFound(article.clone()),
            DraftError::Refused(
                refused @ (WriteRefused::VersionMismatch { current, .. }
                | WriteRefused::VersionNotNewer { current, .. }),
            ) => Self::Version { article: article.clone(), refused, current },
            other => Self::invalid("article", other.to_string()),
        }
    }

    /// The outcome of one article on a stream of many. What is not about the article is the status of the stream.
    pub(super) fn into_outcome(self) -> Result<ArticleRefused, Status> {
        match self {
            Self::Refusal(Refusal::Invalid { field, message }) => {
                let message = describe(field.as_deref(), &message);
                Ok(ArticleRefused { kind: RefusalKind::Invalid.into(), message, field, current_version: None })
            }
            Self::Version { article, refused, current } => {
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
}

impl From<Refusal> for Conflict {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(refusal)
    }
}

impl From<PipelineError> for Conflict {
    fn from(error: PipelineError) -> Self {
        Self::Refusal(match error {
            PipelineError::ShuttingDown => Refusal::Unavailable,
            error => {
                tracing::error!(error = &error as &dyn std::error::Error, "the knowledge base failed");
                Refusal::Internal
            }
        })
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
            let outcome = conflict.into_outcome().expect("about the article");
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
        let code = |conflict: Conflict| conflict.into_outcome().expect_err("not about the article").code();
        assert_eq!(code(PipelineError::ShuttingDown.into()), Code::Unavailable);
        assert_eq!(code(Conflict::NotFound(article())), Code::NotFound);
    }
}
