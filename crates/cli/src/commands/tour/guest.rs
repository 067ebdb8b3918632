//! Stands in for the guest: puts its bytes into the images of the tour.
//!
//! A small writer of small images: version 3 with 16-bit refcounts, whole clusters, one L2 table. It follows the
//! order that every writer must: data, the table that leads to it, their refcounts, and the entry that makes them
//! reachable last. It is no engine, and refuses what it does not know.

use super::stage::system;
use catena::chain::Layer;
use catena::open::Sharing;
use catena::{Disk, Error, ErrorKind, Format, GuestOffset, Policy, Result, Start, detect};
use catena_engine::StorageBytes;
use catena_format::Bytes;
use catena_format::qcow2::rewrite;
use catena_format::qcow2::{BackingName, Cluster, Extension, Header, Incompatible, L1Entry, Layout, Version};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage};
use std::path::Path;
use std::time::SystemTime;

/// Bit 63 of L1 and L2 entries: the refcount is exactly one.
const COPIED: u64 = 1 << 63;
/// Bytes of a 16-bit refcount.
const REFCOUNT_BYTES: u64 = 2;

/// Writes bytes of the guest into a raw image.
pub fn write_raw(path: &Path, bytes: &[u8], at: u64) -> Result<()> {
    let file = LocalFile::open(path, &writable())?;
    file.write_all_at(bytes, at)?;
    Ok(file.flush()?)
}

/// Writes bytes of the guest into a qcow2 image. They lie within one cluster, and nobody uses the image.
pub fn write_qcow2(path: &Path, bytes: &[u8], at: u64) -> Result<()> {
    let chain = detect(&Start::at(path, Some(Format::Qcow2)), &Policy::libvirt());
    let disk = chain.open(Sharing::Locked)?;
    let header = chain.active().and_then(known_header).ok_or_else(unknown_kind)?;
    let layout = Layout::of(header);
    let size = header.cluster_bits.size();
    let start = at - header.cluster_bits.offset_in_cluster(at);

    // What the guest does not write of the cluster stays what it sees there now: this is the copy of copy-on-write.
    let mut cluster = vec![0; usize::try_from(size).unwrap_or_default()];
    disk.read_at(&mut cluster, GuestOffset(start))?;
    let place = usize::try_from(at - start).unwrap_or_default();
    cluster
        .get_mut(place..)
        .and_then(|rest| rest.get_mut(..bytes.len()))
        .ok_or_else(unknown_kind)?
        .copy_from_slice(bytes);
    let header = header.clone();
    drop(disk);
    drop(chain);

    let file = LocalFile::open(path, &writable())?;
    let l1 = L1Entry(be64(&file, header.l1_offset)?);
    let table = layout.l2_offset(l1)?;
    let index = start / size;
    if let Some(table) = table {
        let entry = be64(&file, table + index * 8)?;
        if let Cluster::Data { host } = layout.cluster(entry, 0)? {
            file.write_all_at(&cluster, host)?;
            return Ok(file.flush()?);
        }
    }
    let mut end = file.len()?.next_multiple_of(size);
    let mut allocate = || {
        let host = end;
        end += size;
        host
    };
    let new_table = table.is_none().then(&mut allocate);
    let host = allocate();
    let entry = (host | COPIED).to_be_bytes();

    file.write_all_at(&cluster, host)?;
    count(&file, &header, host)?;
    file.flush()?;
    match (table, new_table) {
        (Some(table), _) => file.write_all_at(&entry, table + index * 8)?,
        (None, Some(table)) => {
            file.write_all_at(&entry, table + index * 8)?;
            count(&file, &header, table)?;
            file.flush()?;
            file.write_all_at(&(table | COPIED).to_be_bytes(), header.l1_offset)?;
        }
        (None, None) => return Err(unknown_kind()),
    }
    Ok(file.flush()?)
}

/// Has the guest's image be the one that was written last.
pub fn goes_on(path: &Path) -> Result<()> {
    std::fs::File::options()
        .write(true)
        .open(path)
        .and_then(|file| file.set_modified(SystemTime::now()))
        .map_err(|error| system(error, "cannot set a time").with_path(path))
}

/// Makes an image record something else of its backing, without a look at what the guest then sees: what a careless
/// tool does. `format` is the word recorded, if any.
pub fn record(path: &Path, name: &str, format: Option<&str>) -> Result<()> {
    let file = LocalFile::open(path, &writable())?;
    let old = Header::read(&StorageBytes::new(&file)?)?;
    let mut new = old.clone();
    new.extensions
        .retain(|extension| !matches!(extension, Extension::BackingFormat(_)));
    if let Some(word) = format {
        new.extensions
            .insert(0, Extension::BackingFormat(word.as_bytes().to_vec()));
    }
    new.backing = Some(BackingName {
        offset: 0,
        name: name.as_bytes().to_vec(),
    });
    let area = StorageBytes::new(&file)?
        .read_exact(0, usize::try_from(old.cluster_bits.size()).unwrap_or_default())?;
    for (offset, bytes) in rewrite::plan(&area, &old, &new)? {
        file.write_all_at(&bytes, offset)?;
        file.flush()?;
    }
    Ok(())
}

/// The header of an image of the one kind that is written here.
fn known_header(layer: &Layer) -> Option<&Header> {
    layer.header.as_ref().filter(|header| {
        header.version == Version::V3
            && header.refcount_order == 4
            && header.incompatible == Incompatible::empty()
            && header.l1_entries == 1
            && header.snapshot_count == 0
    })
}

/// Gives a cluster the refcount one.
fn count(file: &LocalFile, header: &Header, host: u64) -> Result<()> {
    let size = header.cluster_bits.size();
    let index = host / size;
    let per_block = size / REFCOUNT_BYTES;
    if index >= per_block {
        return Err(unknown_kind());
    }
    let block = be64(file, header.refcount_table_offset)?;
    Ok(file.write_all_at(&1u16.to_be_bytes(), block + index * REFCOUNT_BYTES)?)
}

fn be64(file: &LocalFile, offset: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    file.read_at(&mut bytes, offset)?;
    Ok(u64::from_be_bytes(bytes))
}

fn writable() -> OpenOptions {
    OpenOptions::new().write(true).lock(LockMode::Write)
}

fn unknown_kind() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "the tour writes into its own small images only",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use catena::ops::create::{self, Existing, Kind, Preallocation, Qcow2Options, Request};
    use std::process::Command;

    fn create(path: &Path, backing: Option<(&str, Format)>) {
        let options = Qcow2Options {
            backing: backing.map(|(name, format)| (name.to_owned(), format)),
            ..Qcow2Options::default()
        };
        let request = Request {
            path: path.to_owned(),
            existing: Existing::Refuse,
            preallocation: Preallocation::Off,
            size: Some(64 << 20),
            kind: Kind::Qcow2(Box::new(options)),
        };
        create::plan(&request, &Policy::libvirt())
            .unwrap()
            .execute()
            .unwrap();
    }

    fn qemu_img(words: &[&str], path: &Path) -> String {
        let output = Command::new("qemu-img").args(words).arg(path).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn what_it_writes_qemu_finds_without_fault() {
        let folder = tempfile::tempdir().unwrap();
        let (base, top) = (folder.path().join("base.qcow2"), folder.path().join("top.qcow2"));
        create(&base, None);
        write_qcow2(&base, b"from the base", 100).unwrap();
        write_qcow2(&base, b"again", 200).unwrap();
        write_qcow2(&base, &[7; 65_536], 5 << 20).unwrap();
        create(&top, Some(("base.qcow2", Format::Qcow2)));
        write_qcow2(&top, b"top", 105).unwrap();
        write_qcow2(&top, b"the last bytes", (64 << 20) - 14).unwrap();
        for image in [&base, &top] {
            assert!(
                qemu_img(&["check", "-f", "qcow2"], image).contains("No errors were found on the image.")
            );
        }

        let raw = folder.path().join("raw");
        let raw_name = raw.to_str().unwrap();
        let status = Command::new("qemu-img")
            .args([
                "convert",
                "-f",
                "qcow2",
                "-O",
                "raw",
                top.to_str().unwrap(),
                raw_name,
            ])
            .status()
            .unwrap();
        assert!(status.success());
        let seen = std::fs::read(&raw).unwrap();
        let mut expected = vec![0u8; 64 << 20];
        for (at, bytes) in [
            (100, b"from top base".as_slice()),
            (200, b"again"),
            (5 << 20, &[7; 65_536]),
            ((64 << 20) - 14, b"the last bytes"),
        ] {
            expected[at..at + bytes.len()].copy_from_slice(bytes);
        }
        assert!(seen == expected);
    }

    #[test]
    fn a_careless_tool_leaves_an_image_that_is_whole_but_records_what_it_said() {
        let folder = tempfile::tempdir().unwrap();
        let (base, top) = (folder.path().join("base.qcow2"), folder.path().join("top.qcow2"));
        create(&base, None);
        create(&top, Some(("base.qcow2", Format::Qcow2)));
        record(&top, "base.qcow2", None).unwrap();
        let info = qemu_img(&["info", "-U", "--output=json", "-f", "qcow2"], &top);
        assert!(
            info.contains("base.qcow2") && !info.contains("backing-filename-format"),
            "{info}"
        );
        assert!(qemu_img(&["check", "-f", "qcow2"], &top).contains("No errors were found on the image."));
    }
}
