//! The longest run of records that stand in their order: what is left over was moved or copied.

/// Positions of a longest strictly increasing subsequence of `numbers`, in order. Patience sorting, O(n log n).
pub(super) fn in_order(numbers: &[u64]) -> Vec<usize> {
    let mut tails: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = vec![None; numbers.len()];
    for (at, number) in numbers.iter().enumerate() {
        let rank = tails.partition_point(|tail| numbers[*tail] < *number);
        before[at] = rank.checked_sub(1).map(|rank| tails[rank]);
        match tails.get_mut(rank) {
            Some(tail) => *tail = at,
            None => tails.push(at),
        }
    }
    let mut chosen = Vec::with_capacity(tails.len());
    let mut next = tails.last().copied();
    while let Some(at) = next {
        chosen.push(at);
        next = before[at];
    }
    chosen.reverse();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_order_is_left_out() {
        let of = |numbers: &[u64]| in_order(numbers).into_iter().map(|at| numbers[at]).collect::<Vec<_>>();
        assert_eq!(of(&[]), [0; 0]);
        assert_eq!(of(&[0, 1, 2, 3]), [0, 1, 2, 3]);
        assert_eq!(of(&[0, 8, 2, 3, 4, 1, 9]), [0, 2, 3, 4, 9]);
        assert_eq!(of(&[5, 5, 5]).len(), 1);
        assert_eq!(of(&[3, 2, 1]).len(), 1);
    }
}
