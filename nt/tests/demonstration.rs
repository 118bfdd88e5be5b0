//! The embedded demonstration runs on both engines, by both ways into the kernel.

use std::cell::RefCell;
use std::rc::Rc;

use lstar_guest_images::demo;
use lstar_nt::io::{Host, StdStream};
use lstar_nt::status::Status;
use lstar_nt::system::{self, RunEnd, System};
use lstar_runtime::{Engine, MachineConfig, SyscallDispatch};

/// A host whose standard output is kept.
#[derive(Debug, Default)]
struct Recorder(Rc<RefCell<Vec<u8>>>);

impl Host for Recorder {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        Ok(0)
    }
    fn write(&mut self, _: StdStream, data: &[u8]) -> std::io::Result<()> {
        self.0.borrow_mut().extend_from_slice(data);
        Ok(())
    }
    fn system_time(&mut self) -> i64 {
        133_000_000_000_000_000
    }
    fn entropy(&mut self, buf: &mut [u8]) {
        buf.fill(0x5A);
    }
}

fn run(engine: Engine, dispatch: SyscallDispatch, name: &str) {
    let folder = std::env::temp_dir().join(format!("lstar-demo-{name}-{}", std::process::id()));
    let output = Rc::new(RefCell::new(Vec::new()));
    let machine = MachineConfig { engine, dispatch, ..MachineConfig::default() };
    let config = system::demonstration(&folder, machine, Box::new(Recorder(Rc::clone(&output)))).unwrap();
    let mut system = System::boot(config).unwrap();
    let end = system.run();
    assert!(matches!(end, RunEnd::Exited { status: Status::SUCCESS, crash: None }), "{end:?}");
    assert_eq!(String::from_utf8_lossy(&output.borrow()), demo::expected_output());
    assert_eq!(std::fs::read_to_string(folder.join("demo.txt")).unwrap(), demo::FILE_TEXT);
    drop(system);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn services_are_hooked_answered_and_ended_by_a_panic() {
    use std::sync::{Arc, Mutex};

    use lstar_nt::trace::TraceFilter;

    for (name, dispatch) in [("hooked", SyscallDispatch::Architectural), ("hooked-direct", SyscallDispatch::Direct)] {
        let folder = std::env::temp_dir().join(format!("lstar-demo-{name}-{}", std::process::id()));
        let machine = MachineConfig { dispatch, ..MachineConfig::default() };
        let config = system::demonstration(&folder, machine, Box::new(Recorder::default())).unwrap();
        let mut system = System::boot(config).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let hooks = &mut system.kernel.service_hooks;
        hooks.add(
            TraceFilter::parse("NtCreateFile,NtWriteFile"),
            Box::new(move |_, call| {
                log.lock().unwrap().push((call.name.to_owned(), call.returned));
                (call.name == "NtCreateFile").then_some(Status::ACCESS_DENIED)
            }),
        );
        let never = hooks.add(TraceFilter::parse("*"), Box::new(|_, _| panic!("it has been removed")));
        assert!(hooks.remove(never) && !hooks.remove(never));
        hooks.add(
            TraceFilter::parse("NtTerminateProcess"),
            Box::new(|_, call| panic!("thread {} is not to end", call.thread != 0)),
        );
        let end = system.run();
        let RunEnd::HookPanicked(message) = end else { panic!("{end:?}") };
        assert_eq!(message, "thread true is not to end");
        let seen = seen.lock().unwrap();
        let denied = seen.iter().filter(|call| **call == ("NtCreateFile".to_owned(), Some(Status::ACCESS_DENIED)));
        let entered = seen.iter().filter(|call| **call == ("NtCreateFile".to_owned(), None));
        let counts = (entered.count(), denied.count());
        assert!(counts.0 > 0 && counts.0 == counts.1, "{seen:?}");
        assert!(!folder.join("demo.txt").exists(), "the file was not to be created");
        drop(system);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

#[test]
fn on_the_interpreter() {
    run(Engine::Interpreter, SyscallDispatch::Architectural, "interpreter");
}

#[test]
fn translated_through_the_guest_kernel() {
    run(Engine::Translator, SyscallDispatch::Architectural, "architectural");
}

#[test]
fn translated_with_direct_dispatch() {
    run(Engine::Translator, SyscallDispatch::Direct, "direct");
}
