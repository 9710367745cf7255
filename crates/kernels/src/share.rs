//! How work is shared out among threads, and how finely.

use rayon::ThreadPoolBuilder;

/// Cycles below which handing work to another thread, which may have to be woken, takes longer than doing it.
const WORTH: usize = 60_000;

/// Tasks, of so many cycles each by a rough count, that a thread should take at once: rayon's `with_min_len`.
///
/// It follows from sizes alone, and what a task computes does not depend on it.
pub(crate) fn tasks_of(cycles: usize) -> usize {
    WORTH.div_ceil(cycles.max(1))
}

/// Runs `f` on a thread of the pool that operations use, so that they begin where they are, and none of them has to be handed over
/// and waited for by a thread outside.
///
/// Example: [`beside`].
pub fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}

/// Runs `f(0)` to `f(n - 1)` beside each other, each on a thread of its own that keeps all operations to itself.
///
/// # Panics
/// If one of them does, or the system gives no more threads.
///
/// ```
/// use scalebench_kernels::{beside, in_pool};
/// assert_eq!(beside(3, |i| i * i), [0, 1, 4]);
/// assert_eq!(in_pool(|| 6 * 7), 42);
/// ```
pub fn beside<R: Send>(n: usize, f: impl Fn(usize) -> R + Sync) -> Vec<R> {
    let alone = |i: usize| ThreadPoolBuilder::new().num_threads(1).build().expect("the system gives a thread").install(|| f(i));
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n).map(|i| scope.spawn(move || alone(i))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;
    use std::sync::Barrier;

    #[test]
    fn small_tasks_go_together_and_large_ones_alone() {
        assert_eq!([0, 1, 20_000, 60_000, 1 << 40].map(super::tasks_of), [60_000, 60_000, 3, 1, 1]);
    }

    #[test]
    fn what_runs_beside_others_keeps_to_its_thread() {
        let both = Barrier::new(2);
        let found = super::beside(2, |i| {
            both.wait();
            let threads: Vec<_> = (0..1000).into_par_iter().map(|_| std::thread::current().id()).collect();
            (i, rayon::current_num_threads(), threads)
        });
        for (i, (index, count, threads)) in found.iter().enumerate() {
            assert_eq!((*index, *count), (i, 1));
            assert!(threads.iter().all(|thread| *thread == threads[0]));
        }
        assert_ne!(found[0].2[0], found[1].2[0]);
        assert!(rayon::current_thread_index().is_none() && super::in_pool(|| rayon::current_thread_index().is_some()));
    }
}
