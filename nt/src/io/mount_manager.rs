//! The mount manager: which volume a drive letter or a volume name stands for.
//!
//! Each volume has two mount points, `\DosDevices\C:` and `\??\Volume{...}`, and a unique identifier. Source: the
//! documented control codes and structures of `mountmgr.h` (Windows SDK), which GetVolumeNameForVolumeMountPoint,
//! GetVolumePathNamesForVolumeName and FindFirstVolume ask through `\\.\MountPointManager`. Mount points cannot be changed.

use super::filesystem::FileSystem;
use super::info::Bytes;
use super::path::fold;
use crate::status::Status;
use crate::strings::utf16_bytes;

/// IOCTL_MOUNTMGR_QUERY_POINTS.
const QUERY_POINTS: u32 = 0x6D_0008;
/// IOCTL_MOUNTMGR_QUERY_DOS_VOLUME_PATH: the best path of a volume.
const QUERY_DOS_VOLUME_PATH: u32 = 0x6D_0030;
/// IOCTL_MOUNTMGR_QUERY_DOS_VOLUME_PATHS: all of them; a volume has one.
const QUERY_DOS_VOLUME_PATHS: u32 = 0x6D_0034;
/// Size of MOUNTMGR_MOUNT_POINT: three offsets with lengths.
const MOUNT_POINT: usize = 0x18;
/// What precedes the mount points in MOUNTMGR_MOUNT_POINTS: size and count.
const POINTS_HEAD: usize = 8;

/// The name of a drive's volume beside its letter, a symbolic link in `\GLOBAL??`. It stays the same from run to run.
#[must_use]
pub fn volume_name(letter: char) -> String {
    format!("Volume{{6c737461-7200-4000-8000-{:012x}}}", u32::from(letter.to_ascii_uppercase()))
}

/// One mount point.
struct Point {
    link: String,
    identifier: Vec<u8>,
    device: String,
}

fn points(files: &FileSystem) -> Vec<Point> {
    let points = files.volumes().iter().enumerate().flat_map(|(index, volume)| {
        let identifier = Bytes::default().bytes(b"DMIO:ID:").u32s(&[volume.serial, u32::from(volume.letter)]).0;
        [format!("\\DosDevices\\{}:", volume.letter), format!("\\??\\{}", volume_name(volume.letter))]
            .map(|link| Point { link, identifier: identifier.clone(), device: FileSystem::device_name(index) })
    });
    points.collect()
}

/// A 16-bit length and a 32-bit offset that a caller's structure holds; an empty one asks for nothing.
fn part(input: &[u8], at: usize) -> Result<&[u8], Status> {
    let head: [u8; 6] = input.get(at..at + 6).and_then(|head| head.try_into().ok()).ok_or(Status::INVALID_PARAMETER)?;
    let [a, b, c, d, low, high] = head;
    let offset = u32::from_le_bytes([a, b, c, d]) as usize;
    let length = usize::from(u16::from_le_bytes([low, high]));
    if length == 0 {
        return Ok(&[]);
    }
    offset.checked_add(length).and_then(|end| input.get(offset..end)).ok_or(Status::INVALID_PARAMETER)
}

fn text(bytes: &[u8]) -> Result<String, Status> {
    let units: Vec<u16> =
        bytes.chunks_exact(2).filter_map(|unit| unit.first_chunk().copied()).map(u16::from_le_bytes).collect();
    String::from_utf16(&units).map_err(|_| Status::INVALID_PARAMETER)
}

/// MOUNTMGR_MOUNT_POINTS of those that a MOUNTMGR_MOUNT_POINT names by link, identifier or device.
fn query_points(files: &FileSystem, input: &[u8]) -> Result<Vec<u8>, Status> {
    if input.len() < MOUNT_POINT {
        return Err(Status::INVALID_PARAMETER);
    }
    let (link, identifier, device) = (text(part(input, 0)?)?, part(input, 8)?, text(part(input, 16)?)?);
    let same = |wanted: &str, name: &str| wanted.is_empty() || fold(wanted) == fold(name);
    let mut found = points(files);
    found.retain(|point| {
        same(&link, &point.link)
            && same(&device, &point.device)
            && (identifier.is_empty() || identifier == point.identifier)
    });
    if found.is_empty() {
        return Err(Status::OBJECT_NAME_NOT_FOUND);
    }
    let tail = POINTS_HEAD + MOUNT_POINT * found.len();
    let (mut heads, mut data) = (Bytes::default(), Vec::new());
    for point in &found {
        for bytes in [utf16_bytes(&point.link), point.identifier.clone(), utf16_bytes(&point.device)] {
            heads = heads.u32s(&[(tail + data.len()) as u32, bytes.len() as u32]);
            data.extend(bytes);
        }
    }
    let size = (tail + data.len()) as u32;
    Ok(Bytes::default().u32s(&[size, found.len() as u32]).bytes(&heads.0).bytes(&data).0)
}

/// MOUNTMGR_VOLUME_PATHS of the volume that a MOUNTMGR_TARGET_NAME names by device or volume name.
fn query_paths(files: &FileSystem, input: &[u8]) -> Result<Vec<u8>, Status> {
    let [low, high] = *input.first_chunk().ok_or(Status::INVALID_PARAMETER)?;
    let length = usize::from(u16::from_le_bytes([low, high]));
    let name = fold(&text(input.get(2..2 + length).ok_or(Status::INVALID_PARAMETER)?)?);
    let volumes = files.volumes().iter().enumerate();
    let names = |index, letter| [FileSystem::device_name(index), format!("\\??\\{}", volume_name(letter))];
    let found = volumes.map(|(index, volume)| (names(index, volume.letter), volume.letter));
    let (_, letter) = found
        .into_iter()
        .find(|(names, _)| names.iter().any(|candidate| fold(candidate) == name))
        .ok_or(Status::OBJECT_NAME_NOT_FOUND)?;
    // A list of terminated strings that ends in an empty one.
    let list = utf16_bytes(&format!("{letter}:\0\0"));
    Ok(Bytes::default().u32s(&[list.len() as u32]).bytes(&list).0)
}

/// Answers a control code: the bytes for the caller. A buffer that they don't fit in gets the size that would do, which
/// both structures begin with, and STATUS_BUFFER_OVERFLOW.
pub fn control(files: &FileSystem, code: u32, input: &[u8], capacity: usize) -> Result<(Vec<u8>, Status), Status> {
    let (mut bytes, least) = match code {
        QUERY_POINTS => (query_points(files, input)?, POINTS_HEAD + MOUNT_POINT),
        QUERY_DOS_VOLUME_PATH | QUERY_DOS_VOLUME_PATHS => (query_paths(files, input)?, 8),
        _ => return Err(Status::INVALID_DEVICE_REQUEST),
    };
    if capacity < least {
        return Err(Status::INVALID_PARAMETER);
    }
    if bytes.len() <= capacity {
        return Ok((bytes, Status::SUCCESS));
    }
    bytes.truncate(4);
    Ok((bytes, Status::BUFFER_OVERFLOW))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{MountAccess, Volume};

    fn files() -> (FileSystem, std::path::PathBuf) {
        let folder =
            std::env::temp_dir().join(format!("lstar-mounts-{}-{:?}", std::process::id(), std::thread::current().id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mount = |letter| Volume::mount(letter, &folder, MountAccess::ReadOnly, &folder).unwrap();
        (FileSystem::new(vec![mount('c'), mount('d')]), folder)
    }

    fn request(link: &str, device: &str) -> Vec<u8> {
        let (link, device) = (utf16_bytes(link), utf16_bytes(device));
        let offsets = [0x18, link.len(), 0, 0, 0x18 + link.len(), device.len()];
        Bytes::default().u32s(&offsets.map(|value| value as u32)).bytes(&link).bytes(&device).0
    }

    #[test]
    fn volumes_are_found_by_any_of_their_names() {
        let (files, folder) = files();
        let count = |input: &[u8]| control(&files, QUERY_POINTS, input, 0x1000).map(|(bytes, _)| bytes[4]);
        assert_eq!(count(&request("", "")), Ok(4));
        assert_eq!(count(&request("\\dosdevices\\d:", "")), Ok(1));
        assert_eq!(count(&request(&format!("\\??\\{}", volume_name('C')), "")), Ok(1));
        assert_eq!(count(&request("", "\\Device\\HarddiskVolume2")), Ok(2));
        assert_eq!(count(&request("\\DosDevices\\E:", "")), Err(Status::OBJECT_NAME_NOT_FOUND));
        // Offsets that lead out of the buffer, and a buffer that is none.
        let mut wild = request("x", "");
        wild[0] = 0xFF;
        assert_eq!(count(&wild), Err(Status::INVALID_PARAMETER));
        assert_eq!(count(&[0; 5]), Err(Status::INVALID_PARAMETER));
        let (short, status) = control(&files, QUERY_POINTS, &request("", ""), 0x20).unwrap();
        assert_eq!(control(&files, QUERY_POINTS, &request("", ""), 0x1F).unwrap_err(), Status::INVALID_PARAMETER);
        assert_eq!((short.len(), status), (4, Status::BUFFER_OVERFLOW));

        let name = utf16_bytes(&format!("\\??\\{}", volume_name('D')));
        let input = [&(name.len() as u16).to_le_bytes()[..], &name].concat();
        let (paths, _) = control(&files, QUERY_DOS_VOLUME_PATHS, &input, 0x100).unwrap();
        assert_eq!(paths, [&8u32.to_le_bytes()[..], &utf16_bytes("D:\0\0")].concat());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
