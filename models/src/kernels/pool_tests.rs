//! The pool: every task once, panics, and threads that rest.

use std::sync::atomic::AtomicU32;

use super::*;

#[test]
fn every_task_runs_once_and_no_thread_has_two_at_a_time() {
    for threads in 1..5 {
        let mut pool = Pool::start(threads).expect("threads");
        for tasks in (0..40).chain([1000]) {
            let runs: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
            let busy: Vec<AtomicBool> = (0..threads).map(|_| AtomicBool::new(false)).collect();
            pool.run(tasks, &|task, thread| {
                assert!(!busy[thread].swap(true, Ordering::Acquire));
                runs[task].fetch_add(1, Ordering::Relaxed);
                busy[thread].store(false, Ordering::Release);
            });
            assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1), "{threads} threads, {tasks} tasks");
        }
    }
}

#[test]
fn what_threads_wrote_is_seen_by_the_caller() {
    let mut pool = Pool::start(3).expect("threads");
    let mut numbers = vec![0.0; 64 * 1000];
    for round in 0..50 {
        pool.rows(&mut numbers, 64, &|row, numbers| numbers.iter_mut().for_each(|number| *number += row as f32));
        let right = |(row, numbers): (usize, &[f32])| numbers.iter().all(|it| *it == (row * (round + 1)) as f32);
        assert!(numbers.chunks(64).enumerate().all(right), "round {round}");
    }
}

#[test]
fn threads_that_sleep_are_woken() {
    let mut pool = Pool::start(2).expect("threads");
    for _ in 0..20 {
        // Both tasks must run at the same time for either to end, so the sleeper has to come.
        let both = std::sync::Barrier::new(2);
        pool.run(2, &|_, _| {
            both.wait();
        });
        while (pool.common.state.load(Ordering::Relaxed) & INSIDE) != 0 {
            std::hint::spin_loop();
        }
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
    let mut pool = Pool::start(3).expect("threads");
    for panicking in [0, 7, 19] {
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(20, &|task, _| assert!(task != panicking, "task {task}"));
        }));
        let message = result.expect_err("a panic");
        assert_eq!(message.downcast_ref::<String>().map(String::as_str), Some(format!("task {panicking}").as_str()));
        let count = AtomicU32::new(0);
        pool.run(20, &|_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 20);
    }
}
