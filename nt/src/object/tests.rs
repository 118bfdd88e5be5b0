use super::manager::attributes::{CASE_INSENSITIVE, OPENLINK};
use super::*;
use crate::status::Status;

fn event() -> Body {
    Body::Event(Event::new(EventKind::Notification, false))
}

#[test]
fn handles_are_multiples_of_four_and_are_reused() {
    let mut objects = ObjectManager::new();
    let mut table = HandleTable::new();
    let a = objects.open_new(&mut table, event(), 0x1F0003, 0).unwrap();
    let b = objects.open_new(&mut table, event(), 0x1F0003, 0).unwrap();
    assert_eq!((a, b), (Handle(4), Handle(8)));
    objects.close(&mut table, a).unwrap();
    assert_eq!(objects.close(&mut table, a), Err(Status::INVALID_HANDLE));
    assert_eq!(objects.open_new(&mut table, event(), 0, 0).unwrap(), Handle(4));
    // Tag bits do not count; values outside the table are refused.
    assert!(table.get(Handle(5)).is_ok());
    for bad in [0, 1, 3, 12, 0x7FFF_FFFF_FFFF_FFFC, u64::MAX, u64::MAX - 1] {
        assert_eq!(table.get(Handle(bad)), Err(Status::INVALID_HANDLE), "{bad:#x}");
    }
    assert_eq!(table.len(), 2);
}

#[test]
fn objects_die_with_their_last_handle() {
    let mut objects = ObjectManager::new();
    let mut table = HandleTable::new();
    let handle = objects.open_new(&mut table, event(), 3, 0).unwrap();
    let id = table.get(handle).unwrap().object;
    let second = objects.open(&mut table, id, 3, 0).unwrap();
    objects.close(&mut table, handle).unwrap();
    assert!(objects.take_dead().is_empty());
    objects.reference(id);
    objects.close(&mut table, second).unwrap();
    assert!(objects.get(id).is_some());
    objects.dereference(id);
    assert!(matches!(objects.take_dead().as_slice(), [(dead, Body::Event(_))] if *dead == id));
    let other = objects.insert(event());
    assert_ne!(other, id, "a stale identifier does not name the slot's next object");
    assert!(objects.get(id).is_none());
}

#[test]
fn type_and_access_are_checked() {
    let mut objects = ObjectManager::new();
    let mut table = HandleTable::new();
    let handle = objects.open_new(&mut table, event(), 0x8000_0000, 0).unwrap();
    assert_eq!(table.get(handle).unwrap().access, 0x20001);
    assert!(objects.by_handle(&table, handle, Some(ObjectType::Event), 1).is_ok());
    assert_eq!(objects.by_handle(&table, handle, Some(ObjectType::Event), 2), Err(Status::ACCESS_DENIED));
    assert_eq!(objects.by_handle(&table, handle, Some(ObjectType::Mutant), 0), Err(Status::OBJECT_TYPE_MISMATCH));
    table.get_mut(handle).unwrap().protect_from_close = true;
    assert_eq!(objects.close(&mut table, handle), Err(Status::HANDLE_NOT_CLOSABLE));
    objects.close_all(&mut table);
    assert!(table.is_empty() && objects.take_dead().len() == 1);
}

fn populated() -> ObjectManager {
    let mut objects = ObjectManager::new();
    objects.populate(&[('C', 0), ('z', 1)], 1).unwrap();
    objects
}

#[test]
fn dos_paths_lead_to_devices() {
    let objects = populated();
    for (path, volume, remaining) in [
        ("\\??\\C:\\windows\\system32", 0, Some("windows\\system32")),
        ("\\DosDevices\\z:\\a", 1, Some("a")),
        ("\\GLOBAL??\\Z:", 1, None),
        ("\\??\\Global\\c:\\", 0, Some("")),
        ("\\??\\GLOBALROOT\\Device\\HarddiskVolume1\\x", 0, Some("x")),
        ("\\device\\harddiskvolume2\\x\\..\\y", 1, Some("x\\..\\y")),
    ] {
        let found = objects.resolve(None, path, CASE_INSENSITIVE).unwrap().unwrap();
        assert!(matches!(objects.body(found.object), Ok(Body::Device(Device::Volume(v))) if *v == volume), "{path}");
        assert_eq!(found.remaining.as_deref(), remaining, "{path}");
    }
}

#[test]
fn bad_paths_are_refused() {
    let objects = populated();
    for (path, status) in [
        ("", Status::OBJECT_PATH_SYNTAX_BAD),
        ("C:\\x", Status::OBJECT_PATH_SYNTAX_BAD),
        ("\\\\x", Status::OBJECT_NAME_INVALID),
        ("\\??\\Q:\\x", Status::OBJECT_PATH_NOT_FOUND),
        ("\\??\\UNC\\server\\share", Status::OBJECT_PATH_NOT_FOUND),
        ("\\KnownDlls\\ntdll.dll", Status::OBJECT_PATH_NOT_FOUND),
        ("\\..\\x", Status::OBJECT_PATH_NOT_FOUND),
    ] {
        assert_eq!(objects.resolve(None, path, CASE_INSENSITIVE), Err(status), "{path}");
    }
    assert!(objects.resolve(None, "\\KnownDlls", CASE_INSENSITIVE).unwrap().is_err());
}

#[test]
fn link_loops_end() {
    let mut objects = populated();
    let target = SymbolicLink { target: "\\a\\loop".to_owned() };
    objects.create_at("\\a\\loop", Body::SymbolicLink(target)).unwrap();
    assert_eq!(objects.resolve(None, "\\a\\loop\\x", 0), Err(Status::OBJECT_PATH_NOT_FOUND));
    let link = objects.resolve(None, "\\a\\loop", OPENLINK).unwrap().unwrap();
    assert_eq!(objects.path_of(link.object), "\\a\\loop");
}

#[test]
fn named_objects_are_found_until_closed() {
    let mut objects = populated();
    let mut table = HandleTable::new();
    let Err(vacancy) = objects.resolve(None, "\\BaseNamedObjects\\Ready", 0).unwrap() else { panic!() };
    let id = objects.insert(event());
    objects.link(id, vacancy.directory, &vacancy.name, false).unwrap();
    let handle = objects.open(&mut table, id, 3, 0).unwrap();
    objects.dereference(id);
    assert_eq!(objects.link(id, vacancy.directory, "Ready", false), Err(Status::OBJECT_NAME_COLLISION));
    assert!(objects.resolve(None, "\\BaseNamedObjects\\READY", 0).unwrap().is_err());
    let found = objects.resolve(None, "\\Sessions\\1\\BaseNamedObjects\\Global\\READY", CASE_INSENSITIVE);
    assert_eq!(found.unwrap().unwrap().object, id);
    assert_eq!(objects.path_of(id), "\\BaseNamedObjects\\Ready");
    objects.close(&mut table, handle).unwrap();
    assert!(objects.resolve(None, "\\BaseNamedObjects\\Ready", 0).unwrap().is_err());
}

#[test]
fn waits_take_what_they_should() {
    let mut body = Body::Event(Event::new(EventKind::Synchronization, true));
    assert_eq!(body.is_signaled(1), Some(true));
    body.satisfy(1);
    assert_eq!(body.is_signaled(1), Some(false));

    let mut body = Body::Semaphore(Semaphore::new(2, 3).unwrap());
    body.satisfy(1);
    body.satisfy(1);
    assert_eq!(body.is_signaled(1), Some(false));
    let Body::Semaphore(semaphore) = &mut body else { panic!() };
    assert_eq!(semaphore.release(3), Ok(0));
    assert_eq!(semaphore.release(1), Err(Status::SEMAPHORE_LIMIT_EXCEEDED));
    assert_eq!(semaphore.release(i32::MAX), Err(Status::SEMAPHORE_LIMIT_EXCEEDED));
    assert!(Semaphore::new(4, 3).is_err() && Semaphore::new(0, 0).is_err() && Semaphore::new(-1, 3).is_err());

    let mut body = Body::Mutant(Mutant::new(None));
    assert_eq!(body.satisfy(7), WaitOutcome::Signaled);
    assert_eq!((body.is_signaled(7), body.is_signaled(8)), (Some(true), Some(false)));
    body.satisfy(7);
    let Body::Mutant(mutant) = &mut body else { panic!() };
    assert_eq!(mutant.release(8), Err(Status::MUTANT_NOT_OWNED));
    assert_eq!((mutant.release(7), mutant.release(7)), (Ok(-1), Ok(0)));
    assert_eq!(mutant.release(7), Err(Status::MUTANT_NOT_OWNED));
    body.satisfy(9);
    let Body::Mutant(mutant) = &mut body else { panic!() };
    assert!(!mutant.abandon(7) && mutant.abandon(9));
    assert_eq!(body.satisfy(7), WaitOutcome::Abandoned);
    assert_eq!(Body::Directory(Directory::default()).is_signaled(1), None);
}

#[test]
fn timers_expire_and_repeat() {
    let mut timer = Timer::new(EventKind::Synchronization);
    assert!(!timer.advance(u64::MAX));
    timer.due = Some(100);
    timer.period_ms = 1;
    assert!(!timer.advance(99));
    assert!(timer.advance(100));
    assert_eq!(timer.due, Some(10_100));
    assert!(timer.advance(45_000), "missed periods are one expiry");
    assert_eq!(timer.due, Some(50_100));
}

#[test]
fn keyed_events_pair_threads() {
    let mut event = KeyedEvent::default();
    assert_eq!(event.wait(1, 0x10), None);
    assert_eq!(event.release(2, 0x20), None);
    assert_eq!(event.release(3, 0x10), Some(1));
    assert_eq!(event.wait(4, 0x20), Some(2));
    assert_eq!(event.wait(5, 0x30), None);
    event.forget(5);
    assert_eq!(event.release(6, 0x30), None);
}
