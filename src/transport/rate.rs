//! So many bytes a second, and no more.

use std::time::Duration;

use tokio::time::Instant;

/// What was not used for so long can be made up for at once.
const BURST: Duration = Duration::from_millis(50);

/// A token bucket: whoever wants to send takes what it sends, and waits until its turn. Turns come in the order they
/// were taken, so that those who share a bucket share it fairly.
#[derive(Debug)]
pub(super) struct Rate {
    bytes_per_s: u64,
    /// All that was taken is sent by then.
    free_at: Option<Instant>,
}

impl Rate {
    /// At least a byte a second, so that whoever waits has an end to wait for.
    pub fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: bytes_per_s.max(1), free_at: None }
    }

    /// Takes `bytes`; they may be sent at the time that is returned, which can lie in the past.
    pub fn take(&mut self, bytes: usize, now: Instant) -> Instant {
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let turn = self.free_at.map_or(earliest, |free_at| free_at.max(earliest));
        let takes_ns = (bytes as u128).saturating_mul(1_000_000_000).div_ceil(u128::from(self.bytes_per_s));
        let takes = Duration::from_nanos(u64::try_from(takes_ns).unwrap_or(u64::MAX));
        self.free_at = Some(turn.checked_add(takes).unwrap_or(turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Several senders, each of which takes its next bytes when it has sent the last ones.
    fn run(rate: &mut Rate, senders: usize, bytes: usize, start: Instant, span: Duration) -> Vec<u64> {
        let mut sent = vec![0; senders];
        let mut ready = vec![start; senders];
        loop {
            let next = (0..senders).min_by_key(|sender| ready[*sender]).unwrap();
            let now = ready[next];
            let turn = rate.take(bytes, now).max(now);
            if turn > start + span {
                return sent;
            }
            sent[next] += bytes as u64;
            ready[next] = turn;
        }
    }

    proptest! {
        #[test]
        fn no_more_is_sent_than_is_allowed_and_hardly_less(
            rate in 10_000..100_000_000_u64, bytes in 1_000..200_000_usize, senders in 1..5_usize,
        ) {
            let span = Duration::from_secs(20);
            let sent: u64 = run(&mut Rate::new(rate), senders, bytes, Instant::now(), span).iter().sum();
            let allowed = rate as f64 * span.as_secs_f64();
            prop_assert!(sent as f64 <= allowed + rate as f64 * BURST.as_secs_f64() + 2.0 * bytes as f64, "{sent} of {allowed}");
            prop_assert!(sent as f64 >= 0.999 * allowed - bytes as f64 * senders as f64, "{sent} of {allowed}");
        }
    }

    #[test]
    fn those_who_share_it_share_it_fairly() {
        let sent = run(&mut Rate::new(1_000_000), 3, 10_000, Instant::now(), Duration::from_secs(3));
        let (least, most) = (*sent.iter().min().unwrap(), *sent.iter().max().unwrap());
        // Whoever comes first has the burst.
        assert!(least > 900_000 && most - least <= 70_000, "{sent:?}");
    }

    #[test]
    fn a_long_rest_is_made_up_for_only_a_little() {
        let (mut rate, start) = (Rate::new(1_000_000), Instant::now());
        rate.take(10_000, start);
        let later = start + Duration::from_secs(3600);
        let at_once = std::iter::from_fn(|| (rate.take(10_000, later) <= later).then_some(10_000)).sum::<u64>();
        assert!((40_000..=60_000).contains(&at_once), "{at_once}");
    }

    #[test]
    fn no_rate_makes_it_panic() {
        let now = Instant::now();
        assert!(Rate::new(0).take(usize::MAX, now) <= now);
        let mut slow = Rate::new(1);
        for _ in 0..10 {
            slow.take(usize::MAX, now);
        }
    }
}
