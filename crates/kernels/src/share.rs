//! How finely work is shared out among threads.

/// Cycles below which handing work to another thread, which may have to be woken, takes longer than doing it.
const WORTH: usize = 60_000;

/// Tasks, of so many cycles each by a rough count, that a thread should take at once: rayon's `with_min_len`.
///
/// It follows from sizes alone, and what a task computes does not depend on it.
pub(crate) fn tasks_of(cycles: usize) -> usize {
    WORTH.div_ceil(cycles.max(1))
}

#[cfg(test)]
mod tests {
    #[test]
    fn small_tasks_go_together_and_large_ones_alone() {
        assert_eq!([0, 1, 20_000, 60_000, 1 << 40].map(super::tasks_of), [60_000, 60_000, 3, 1, 1]);
    }
}
