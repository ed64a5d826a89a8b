//! Processor time of the whole machine: workers, softirqs and whoever else works for a packet.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};

/// `USER_HZ`, which Linux has shown to programs as 100 on all architectures that matter here.
const TICK: Duration = Duration::from_millis(10);
/// The generator runs for some time before and after what is measured.
pub(crate) const MARGIN: Duration = Duration::from_millis(200);

/// How many processors there are, and the time that all of them together were idle since the start (proc(5), `stat`:
/// idle and iowait).
fn idle() -> anyhow::Result<(u32, Duration)> {
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    parse(&stat).context("/proc/stat does not tell of processors")
}

fn parse(stat: &str) -> Option<(u32, Duration)> {
    let all = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let mut fields = all.split_whitespace().skip(3);
    let mut next = || fields.next()?.parse::<u32>().ok();
    let idle = TICK * next()?.saturating_add(next()?);
    let count = stat.lines().filter(|line| line.starts_with("cpu")).count() - 1;
    (count > 0).then_some((u32::try_from(count).ok()?, idle))
}

/// Watches the machine for a time that begins after [`MARGIN`], while `work` goes on: seconds of processor time that
/// were used in each second, and what became of the work.
pub(crate) fn watched<R>(
    duration: Duration,
    work: impl FnOnce() -> anyhow::Result<R>,
) -> anyhow::Result<(f64, R)> {
    thread::scope(|scope| {
        let watcher = scope.spawn(|| -> anyhow::Result<f64> {
            thread::sleep(MARGIN);
            let (begin, (count, before)) = (Instant::now(), idle()?);
            thread::sleep(duration);
            let (time, (_, after)) = (begin.elapsed(), idle()?);
            let idle = after.saturating_sub(before).as_secs_f64();
            Ok((f64::from(count) - idle / time.as_secs_f64()).max(0.0))
        });
        let result = work();
        let busy = watcher
            .join()
            .map_err(|_| anyhow!("a thread has panicked"))??;
        Ok((busy, result?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_read() {
        let stat = "cpu  336135 74794 24437 1767523 1109 0 1999 275 0 0\ncpu0 1 1 1 1 1 0 0 0 0 0\ncpu1 1 1\nintr 1\n";
        assert_eq!(parse(stat), Some((2, Duration::from_millis(17_686_320))));
        assert_eq!(parse("cpu0 1 2 3 4 5\n"), None);
    }

    #[test]
    fn a_busy_thread_is_seen() {
        let (busy, ()) = watched(Duration::from_millis(200), || {
            let until = Instant::now() + Duration::from_millis(500);
            while Instant::now() < until {}
            Ok(())
        })
        .expect("it is read");
        let (count, _) = idle().expect("it is read");
        assert!(busy > 0.0 && busy <= f64::from(count), "{busy}");
    }
}
