//! The filter of system calls (seccomp): a list of what is allowed, anything else fails with EPERM.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// Without further conditions: memory, files by name (which Landlock bounds), open files, waiting, clocks, threads,
/// signals, facts about the process itself.
const ALLOWED: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_linkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_readlinkat,
    libc::SYS_fchmodat,
    libc::SYS_utimensat,
    libc::SYS_getcwd,
    libc::SYS_umask,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_fchmod,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_getdents64,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_delete,
    // Always refused by the other filter; see [`apply`].
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getpgid,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    // The helper that clears the run's folder away is waited for.
    libc::SYS_wait4,
    libc::SYS_waitid,
];

/// The older spellings of some of these.
#[cfg(target_arch = "x86_64")]
const ALLOWED_LEGACY: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_readlink,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_time,
    libc::SYS_getpgrp,
    libc::SYS_pause,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_LEGACY: &[c_long] = &[];

/// Sockets, for guests that may have some. Which ones can be made is in [`sockets`].
const NETWORK: &[c_long] = &[
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
];

/// Requests of ioctl: terminal state and size, bytes to be read. None that puts words into a terminal's mouth.
const IOCTL_REQUESTS: &[u64] = &[
    libc::TCGETS,
    libc::TCSETS,
    libc::TCSETSW,
    libc::TCSETSF,
    libc::TCGETS2,
    libc::TCSETS2,
    libc::TCSETSW2,
    libc::TCSETSF2,
    libc::TCFLSH,
    libc::TIOCGWINSZ,
    libc::TIOCGPGRP,
    libc::FIONREAD,
    libc::FIONBIO,
];

/// Requests of prctl: names of threads and of memory.
const PRCTL_REQUESTS: &[libc::c_int] = &[libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA];

/// `argument` of a system call is `value`, as far as `mask` goes.
fn condition(argument: u8, mask: u64, value: u64) -> Result<SeccompRule, BackendError> {
    let operation = SeccompCmpOp::MaskedEq(mask);
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operation, value)?])
}

/// The sockets that a network is made of: TCP and UDP over both IPs.
fn sockets() -> Result<Vec<SeccompRule>, BackendError> {
    /// The type without its flags.
    const TYPE: u64 = 0xF;
    let mut rules = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM] {
            let wanted = |argument, mask, value: libc::c_int| {
                let operation = SeccompCmpOp::MaskedEq(mask);
                SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operation, value as u64)
            };
            rules.push(SeccompRule::new(vec![wanted(0, LOW_HALF, family)?, wanted(1, TYPE, kind)?])?);
        }
    }
    Ok(rules)
}

const LOW_HALF: u64 = 0xFFFF_FFFF;

fn rules(network: bool) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let calls: &[c_long] = if network { NETWORK } else { &[] };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        [ALLOWED, ALLOWED_LEGACY, calls].concat().into_iter().map(|call| (call, Vec::new())).collect();
    if network {
        rules.insert(libc::SYS_socket, sockets()?);
    }
    let own = u64::from(std::process::id());
    let any = |values: &mut dyn Iterator<Item = u64>, argument| {
        values.map(|value| condition(argument, LOW_HALF, value)).collect::<Result<Vec<_>, _>>()
    };
    rules.insert(libc::SYS_ioctl, any(&mut IOCTL_REQUESTS.iter().copied(), 1)?);
    rules.insert(libc::SYS_prctl, any(&mut PRCTL_REQUESTS.iter().map(|&request| request as u64), 0)?);
    // Threads, not processes.
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(libc::SYS_clone, vec![condition(0, thread, thread)?]);
    // Its own limits, and signals to itself.
    rules.insert(libc::SYS_prlimit64, vec![condition(0, LOW_HALF, 0)?]);
    rules.insert(libc::SYS_kill, vec![condition(0, LOW_HALF, own)?]);
    rules.insert(libc::SYS_tgkill, vec![condition(0, LOW_HALF, own)?]);
    // The line editor's own pipe.
    rules.insert(libc::SYS_socketpair, vec![condition(0, LOW_HALF, libc::AF_UNIX as u64)?]);
    Ok(rules)
}

/// clone3 hides its flags in memory, where no filter looks. Told that there is none, the C library uses clone.
fn no_clone3() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    Ok([(libc::SYS_clone3, Vec::new())].into())
}

/// Applies the filters to the calling thread and those that it will start.
pub fn apply(network: bool) -> seccompiler::Result<()> {
    let architecture = std::env::consts::ARCH.try_into()?;
    let errno = |error: libc::c_int| SeccompAction::Errno(error as u32);
    let allow = SeccompAction::Allow;
    let filters = [
        SeccompFilter::new(no_clone3()?, allow.clone(), errno(libc::ENOSYS), architecture)?,
        SeccompFilter::new(rules(network)?, errno(libc::EPERM), allow, architecture)?,
    ];
    // Both are compiled before either is in effect.
    let programs: Vec<BpfProgram> = filters.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
    // The second one allows no further filter.
    programs.iter().try_for_each(|program| seccompiler::apply_filter(program))
}
