//! Clocks: interrupt time, system time, the performance counter.
//!
//! By default time is virtual: it advances with retired instructions and jumps over idle waits, so that a run is the
//! same every time. On request it follows the host.

use std::time::{Duration, Instant};

/// Where time comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ClockSource {
    /// Retired instructions, [`INSTRUCTIONS_PER_UNIT`] to a unit of 100 ns.
    #[default]
    Virtual,
    /// The host's monotonic clock.
    Host,
}

/// Instructions per 100 ns of virtual time: a processor of 1,000 MIPS.
pub const INSTRUCTIONS_PER_UNIT: u64 = 100;
/// Interrupt time when the guest starts: a system that runs a program has been up for minutes. Code that remembers the
/// tick count of what it has never done (zero) would take a count near zero for "just now".
const BOOT: u64 = 600 * 10_000_000;
/// QueryPerformanceFrequency: 100 ns units.
pub const PERFORMANCE_FREQUENCY: u64 = 10_000_000;

/// The system's clock.
#[derive(Clone, Debug)]
pub struct Clock {
    source: ClockSource,
    /// System time when the guest starts.
    boot_time: i64,
    /// Units skipped while every thread waited (virtual time only).
    idle: u64,
    retired: u64,
    started: Instant,
}

impl Clock {
    /// A clock that boots now; `system_time` is the wall clock's, in 100 ns since 1601.
    #[must_use]
    pub fn new(source: ClockSource, system_time: i64) -> Self {
        Self { source, boot_time: system_time, idle: 0, retired: 0, started: Instant::now() }
    }

    /// Tells how many instructions have retired since the machine was made; called at each entry of the gate.
    pub fn advance(&mut self, retired: u64) {
        self.retired = self.retired.max(retired);
    }

    /// 100 ns units since boot. Never goes back.
    #[must_use]
    pub fn interrupt_time(&self) -> u64 {
        let running = match self.source {
            ClockSource::Virtual => self.retired / INSTRUCTIONS_PER_UNIT,
            ClockSource::Host => u64::try_from(self.started.elapsed().as_nanos() / 100).unwrap_or(u64::MAX),
        };
        BOOT.saturating_add(running).saturating_add(self.idle)
    }

    /// 100 ns units since 1601.
    #[must_use]
    pub fn system_time(&self) -> i64 {
        self.boot_time.saturating_add_unsigned(self.interrupt_time() - BOOT)
    }

    /// System time at an interrupt time.
    #[must_use]
    pub fn system_time_at(&self, interrupt_time: u64) -> i64 {
        self.boot_time.saturating_add_unsigned(interrupt_time.saturating_sub(BOOT))
    }

    /// System time at boot, when the interrupt time was 0.
    #[must_use]
    pub fn boot_time(&self) -> i64 {
        self.boot_time.saturating_sub_unsigned(BOOT)
    }

    /// 100 ns units since the guest started.
    #[must_use]
    pub fn elapsed(&self) -> u64 {
        self.interrupt_time() - BOOT
    }

    /// NtSetSystemTime: moves the wall clock, not the interrupt time.
    pub fn set_system_time(&mut self, system_time: i64) {
        self.boot_time = system_time.saturating_sub_unsigned(self.interrupt_time() - BOOT);
    }

    /// Interrupt time of an NT timeout: negative is relative, positive is system time, `i64::MIN` waits for ever.
    #[must_use]
    pub fn deadline(&self, timeout: i64) -> Option<u64> {
        match timeout {
            i64::MIN => None,
            timeout if timeout < 0 => Some(self.interrupt_time().saturating_add(timeout.unsigned_abs())),
            timeout => {
                let delta = timeout.saturating_sub(self.system_time());
                Some(self.interrupt_time().saturating_add(u64::try_from(delta).unwrap_or(0)))
            }
        }
    }

    /// Real time has passed while lstar waited for the host: virtual time does not stay behind.
    pub fn pass(&mut self, time: Duration) {
        if self.source == ClockSource::Virtual {
            self.idle = self.idle.saturating_add(u64::try_from(time.as_nanos() / 100).unwrap_or(u64::MAX));
        }
    }

    /// Lets time pass to an interrupt time: nothing else can run.
    pub fn idle_until(&mut self, interrupt_time: u64) {
        let missing = interrupt_time.saturating_sub(self.interrupt_time());
        match self.source {
            ClockSource::Virtual => self.idle = self.idle.saturating_add(missing),
            // In slices, so that a stop request is noticed between calls.
            ClockSource::Host => {
                std::thread::sleep(Duration::from_nanos(missing.saturating_mul(100)).min(Duration::from_millis(50)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_time_follows_instructions_and_idling() {
        let mut clock = Clock::new(ClockSource::Virtual, 1000);
        assert_eq!((clock.interrupt_time(), clock.system_time()), (BOOT, 1000));
        assert_eq!((clock.elapsed(), clock.boot_time()), (0, 1000 - BOOT as i64));
        clock.advance(2_500);
        assert_eq!((clock.interrupt_time(), clock.system_time()), (BOOT + 25, 1025));
        clock.advance(100);
        assert_eq!(clock.interrupt_time(), BOOT + 25, "time does not go back");
        clock.idle_until(BOOT + 40);
        clock.idle_until(BOOT + 30);
        assert_eq!(clock.system_time(), 1040);
        clock.set_system_time(9_000);
        assert_eq!((clock.interrupt_time(), clock.system_time()), (BOOT + 40, 9_000));
    }

    #[test]
    fn timeouts() {
        let mut clock = Clock::new(ClockSource::Virtual, 1000);
        clock.advance(1_000);
        assert_eq!(clock.deadline(-5), Some(BOOT + 15));
        assert_eq!(clock.deadline(0), Some(BOOT + 10));
        assert_eq!(clock.deadline(1_030), Some(BOOT + 30));
        assert_eq!(clock.deadline(i64::MIN), None);
        assert_eq!(clock.deadline(i64::MIN + 1), Some(BOOT + 10 + i64::MAX.unsigned_abs()));
        clock.idle_until(u64::MAX);
        assert_eq!(clock.interrupt_time(), u64::MAX);
        assert!(clock.deadline(i64::MAX).is_some() && clock.system_time() > 0);
    }
}
