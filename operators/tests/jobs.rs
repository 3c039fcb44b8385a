//! What becomes of jobs: finished, lost, refused.

use turnflow_operators::jobs::{Came, Jobs};
use turnflow_operators::shell::Wake;

#[test]
fn a_refused_job_is_silent_and_a_lost_one_is_told() {
    timely::execute_directly(|worker| {
        let wake = Wake::new(worker.sync_activator_for(vec![0]));
        let mut jobs: Jobs<u8, &str, u8> = Jobs::new(&wake);
        let refused = jobs.start(1, |_, report| {
            drop(report);
            false
        });
        assert_eq!(refused, Err(1));
        assert!(jobs.next_event().is_none() && jobs.is_empty(), "a refusal is no event");

        let lost_at_once = jobs.start(2, |_, report| {
            drop(report);
            true
        });
        assert_eq!(lost_at_once, Ok(()));
        assert!(matches!(jobs.next_event(), Some(Came::Last(2, None))));

        let mut kept = None;
        assert_eq!(jobs.start(3, |_, report| kept.replace(report).is_none()), Ok(()));
        assert!(jobs.next_event().is_none());
        drop(kept);
        assert!(matches!(jobs.next_event(), Some(Came::Last(3, None))), "lost later");

        let finished = jobs.start(4, |_, report| {
            report.pieces().send("piece");
            report.finish(9);
            true
        });
        assert_eq!(finished, Ok(()));
        assert!(matches!(jobs.next_event(), Some(Came::Piece(4, "piece"))));
        assert!(matches!(jobs.next_event(), Some(Came::Last(4, Some(9)))));
        assert!(jobs.next_event().is_none() && jobs.is_empty());
    });
}
