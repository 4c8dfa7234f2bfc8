//! Which tokens a step computes.

/// New tokens of each running sequence in one step, given how many each has `pending`.
///
/// A sequence with one pending token is decoding (or at the end of its prompt) and always gets it,
/// so that answers keep flowing; what is left of `budget` goes to prompts, the oldest first, in
/// chunks. Somebody always advances.
///
/// Example: budget 8, pending [1, 20, 1, 3]: the step computes [1, 6, 1, 0].
pub(crate) fn tokens_of_step(pending: &[usize], budget: usize) -> Vec<usize> {
    let decoding = pending.iter().filter(|&&pending| pending == 1).count();
    let mut left = budget.saturating_sub(decoding);
    if decoding == 0 {
        left = left.max(1);
    }
    let mut share = |pending: usize| {
        if pending == 1 {
            return 1;
        }
        let tokens = pending.min(left);
        left -= tokens;
        tokens
    };
    pending.iter().map(|&pending| share(pending)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_flow_and_prompts_share_the_rest() {
        assert_eq!(tokens_of_step(&[1, 20, 1, 3], 8), [1, 6, 1, 0]);
        assert_eq!(tokens_of_step(&[20, 3], 22), [20, 2]);
        assert_eq!(tokens_of_step(&[1, 1, 1, 9], 3), [1, 1, 1, 0]);
        assert_eq!(tokens_of_step(&[], 3), [0usize; 0]);
    }

    #[test]
    fn somebody_always_advances() {
        for pending in [vec![5], vec![1; 9], vec![7, 1], vec![4, 4, 4]] {
            assert!(tokens_of_step(&pending, 0).iter().sum::<usize>() > 0, "{pending:?}");
        }
    }
}
