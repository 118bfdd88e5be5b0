//! System instructions: SYSCALL, SYSRET, SWAPGS, IRETQ, descriptor-table and control-register access.
