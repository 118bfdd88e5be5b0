//! The NT personality: executive components behind the guest kernel's service tables.
//!
//! Guest code reaches this crate only through the service gate: the guest kernel's own system-call and trap code runs
//! first, on whichever engine. Nothing here sees host addresses or the CPU's internal state.
#![forbid(unsafe_code)]

pub mod block_trace;
mod boot;
pub mod context;
pub mod crash;
pub mod debug;
pub mod direct;
pub mod exception;
mod firmware;
pub mod function_trace;
pub mod io;
pub mod kernel;
pub mod loader;
pub mod lockstep;
pub mod memory;
pub mod nls;
pub mod object;
pub mod process;
pub mod prototypes;
pub mod registry;
pub mod scheduler;
pub mod service;
pub mod service_hooks;
pub mod status;
pub mod strings;
pub mod system;
pub mod system_information;
pub mod system_services;
pub mod system_state;
pub mod thread;
pub mod time;
pub mod token;
pub mod token_services;
pub mod trace;
pub mod user_ptr;
pub mod wait;
pub mod win32k;
pub mod wine;
