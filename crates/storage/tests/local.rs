//! Files of this machine: what may be opened, and how their bytes and holes behave.

#![cfg(test)]

use catena_storage::{
    Alignment, ErrorKind, LocalFile, LockMode, Locking, OpenOptions, Span, SpanKind, Storage, holders,
    sync_directory_of,
};
use catena_testkit::not_tested;
use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

fn read_only() -> OpenOptions {
    OpenOptions::new()
}

fn writing() -> OpenOptions {
    OpenOptions::new().write(true)
}

/// A folder on the file system of the other tests' files, and one in memory where there is such a thing.
fn folders() -> Vec<TempDir> {
    let mut all = vec![tempfile::tempdir().unwrap()];
    match tempfile::tempdir_in("/dev/shm") {
        Ok(folder) => all.push(folder),
        Err(error) => not_tested(format!("tmpfs: /dev/shm: {error}")),
    }
    all
}

fn spans(store: &dyn Storage) -> Vec<Span> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(span) = store.span_at(at).unwrap() {
        assert_eq!(span.offset, at);
        assert!(span.len > 0);
        at += span.len;
        all.push(span);
    }
    assert_eq!(at, store.len().unwrap());
    all
}

#[test]
fn refuses_what_is_no_file_or_block_device_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let link = folder.path().join("link");
    symlink("/dev/zero", &link).unwrap();
    let cases: [(&Path, &str); 5] = [
        (&fifo, "it is a FIFO"),
        (&socket, "it is a socket"),
        (folder.path(), "it is a directory"),
        (Path::new("/dev/null"), "it is a character device"),
        (&link, "it is a character device"),
    ];
    let start = Instant::now();
    for (path, why) in cases {
        for options in [read_only(), writing(), read_only().direct(true)] {
            let error = LocalFile::open(path, &options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
        let error = LocalFile::create(path, &writing().overwrite(true)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(5));
    assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
}

#[test]
fn says_that_a_file_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("missing");
    let error = LocalFile::open(&path, &read_only()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.to_string(), format!("cannot open '{}'", path.display()));
}

#[test]
fn creates_only_what_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new");
    let file = LocalFile::create(&path, &OpenOptions::new()).unwrap();
    assert!(file.is_writable());
    assert_eq!(file.locking(), Locking::Held);
    file.write_all_at(b"kept", 0).unwrap();
    file.flush().unwrap();
    sync_directory_of(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode & !0o644, 0, "{mode:o}");
    drop(file);
    let error = LocalFile::create(&path, &OpenOptions::new()).unwrap_err();
    assert!(error.to_string().ends_with("it exists"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"kept");
}

#[test]
fn empties_a_file_only_once_it_is_locked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fs::write(&path, "precious").unwrap();
    let reader = LocalFile::open(&path, &read_only()).unwrap();
    let error = LocalFile::create(&path, &OpenOptions::new().overwrite(true)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    drop(reader);
    LocalFile::create(&path, &OpenOptions::new().overwrite(true)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"");
}

#[test]
fn a_file_opened_for_reading_is_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fs::write(&path, "bytes").unwrap();
    let file = LocalFile::open(&path, &read_only()).unwrap();
    for result in [
        file.write_all_at(b"x", 0),
        file.write_all_vectored_at(&[IoSlice::new(b"x")], 0),
        file.punch_hole(0, 1),
        file.set_len(0),
    ] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Denied);
    }
    file.flush().unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"bytes");
}

#[test]
fn one_object_whatever_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let (path, link) = (folder.path().join("image"), folder.path().join("link"));
    fs::write(&path, "bytes").unwrap();
    symlink("image", &link).unwrap();
    let named = LocalFile::open(&path, &read_only()).unwrap();
    let linked = LocalFile::open(&link, &read_only()).unwrap();
    let identity = named.identity().unwrap();
    assert!(identity.same_object(&linked.identity().unwrap()));
    assert_eq!(identity.len, 5);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(identity.object(), (metadata.dev(), metadata.ino()));
    assert_eq!(identity.modified, metadata.modified().ok());
    assert_eq!(linked.path(), Some(link.as_path()));
}

#[test]
fn opens_what_a_handle_stands_for_though_the_name_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fs::write(&path, "bytes").unwrap();
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let handle = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
    fs::remove_file(&path).unwrap();
    let file = LocalFile::open_handle(&handle, &path, &writing()).unwrap();
    file.write_all_at(b"B", 0).unwrap();
    let mut buf = [0; 5];
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 5);
    assert_eq!(&buf, b"Bytes");
    assert_eq!(
        LocalFile::from_file(handle.into(), &path).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

#[test]
fn reads_end_where_the_bytes_end() {
    for folder in folders() {
        let path = folder.path().join("image");
        fs::write(&path, "0123456789").unwrap();
        let file = LocalFile::open(&path, &read_only()).unwrap();
        assert_eq!(file.alignment(), Alignment::NONE);
        let mut buf = [0; 8];
        assert_eq!(file.read_at(&mut buf, 6).unwrap(), 4);
        assert_eq!(&buf[..4], b"6789");
        for offset in [10, 1 << 40, i64::MAX as u64, u64::MAX] {
            assert_eq!(file.read_at(&mut buf, offset).unwrap(), 0);
            assert_eq!(file.span_at(offset).unwrap(), None);
        }
        let (mut one, mut two, mut three) = ([0; 3], [0; 3], [0; 9]);
        let mut bufs = [&mut one[..], &mut [], &mut two[..], &mut three[..]].map(IoSliceMut::new);
        assert_eq!(file.read_vectored_at(&mut bufs, 2).unwrap(), 8);
        assert_eq!((&one, &two, &three[..2]), (b"234", b"567", &b"89"[..]));
    }
}

#[test]
fn many_buffers_are_moved_in_turn() {
    let folder = tempfile::tempdir().unwrap();
    let file = LocalFile::create(folder.path().join("image"), &writing()).unwrap();
    let bytes: Vec<u8> = (0..9000_u32).map(|n| (n % 251) as u8).collect();
    // More buffers than the kernel takes at once.
    let bufs: Vec<IoSlice<'_>> = bytes.chunks(3).map(IoSlice::new).collect();
    file.write_all_vectored_at(&bufs, 5).unwrap();
    let mut back = vec![0; 9100];
    let mut bufs: Vec<IoSliceMut<'_>> = back.chunks_mut(7).map(IoSliceMut::new).collect();
    assert_eq!(file.read_vectored_at(&mut bufs, 5).unwrap(), 9000);
    assert_eq!(back[..9000], bytes);
}

#[test]
fn writing_far_out_leaves_a_hole_and_past_the_last_offset_is_refused() {
    for folder in folders() {
        let file = LocalFile::create(folder.path().join("image"), &writing()).unwrap();
        let far = 1 << 42;
        file.write_all_at(b"far", far).unwrap();
        assert_eq!(file.len().unwrap(), far + 3);
        let all = spans(&file);
        assert_eq!(all[0].kind, SpanKind::Hole);
        assert_eq!(all[1].kind, SpanKind::Data);
        assert!(file.allocated().unwrap().unwrap() < 1 << 20);
        for offset in [i64::MAX as u64, u64::MAX] {
            let error = file.write_all_at(b"x", offset).unwrap_err();
            assert_eq!((error.kind(), error.offset()), (ErrorKind::NoSpace, Some(offset)));
            let error = file
                .write_all_vectored_at(&[IoSlice::new(b"x")], offset)
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoSpace);
        }
    }
}

#[test]
fn a_punched_hole_reads_as_zeros_and_takes_no_space() {
    for folder in folders() {
        let file = LocalFile::create(folder.path().join("image"), &writing()).unwrap();
        let size = 1 << 20;
        file.write_all_at(&vec![0xaa; size], 0).unwrap();
        file.flush().unwrap();
        let before = file.allocated().unwrap().unwrap();
        file.punch_hole(0x1_0001, 0x2_0000).unwrap();
        assert_eq!(file.len().unwrap(), size as u64);
        let mut expected = vec![0xaa; size];
        expected[0x1_0001..0x3_0001].fill(0);
        let mut bytes = vec![1; size];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), size);
        assert!(bytes == expected);
        assert!(spans(&file).iter().any(|span| span.kind == SpanKind::Hole));
        assert!(file.allocated().unwrap().unwrap() < before);
        // Past the end and empty: nothing to do.
        for (offset, len) in [
            (size as u64, 1),
            (0, 0),
            (u64::MAX, u64::MAX),
            (i64::MAX as u64, 9),
        ] {
            file.punch_hole(offset, len).unwrap();
        }
        file.punch_hole(0, u64::MAX).unwrap();
        assert_eq!(file.len().unwrap(), size as u64);
        assert_eq!(spans(&file).len(), 1);
        assert_eq!(file.allocated().unwrap(), Some(0));
    }
}

#[test]
fn what_was_cut_off_does_not_come_back() {
    for folder in folders() {
        for direct in [false, true] {
            let path = folder.path().join(format!("image{direct}"));
            let Some(file) = create(&path, direct) else {
                continue;
            };
            file.write_all_at(&[7; 9000], 0).unwrap();
            file.set_len(10).unwrap();
            file.set_len(9000).unwrap();
            let mut bytes = vec![1; 9001];
            assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 9000);
            assert_eq!(bytes[..10], [7; 10]);
            assert!(bytes[10..9000].iter().all(|byte| *byte == 0));
        }
    }
}

/// A new file, if need be past the page cache; `None`, and the reason printed, where that cannot be had.
fn create(path: &Path, direct: bool) -> Option<LocalFile> {
    match LocalFile::create(path, &writing().direct(direct)) {
        Ok(file) => Some(file),
        Err(error) if direct && error.kind() == ErrorKind::Unsupported => {
            not_tested(error);
            assert!(!path.exists());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn many_threads_read_and_write_one_file() {
    const THREADS: usize = 8;
    const PIECE: usize = 3000;
    let folder = tempfile::tempdir().unwrap();
    for direct in [false, true] {
        // Pieces share blocks with those of other threads.
        let Some(file) = create(&folder.path().join(format!("image{direct}")), direct) else {
            continue;
        };
        thread::scope(|scope| {
            for number in 0..THREADS {
                let file = file.clone();
                scope.spawn(move || {
                    for round in 0..20 {
                        let at = ((round * THREADS + number) * PIECE) as u64;
                        let bytes = [number as u8 + 1; PIECE];
                        file.write_all_at(&bytes, at).unwrap();
                        let mut back = [0; PIECE];
                        assert_eq!(file.read_at(&mut back, at).unwrap(), PIECE);
                        assert_eq!(back, bytes);
                        file.span_at(at).unwrap();
                    }
                });
            }
        });
        let len = 20 * THREADS * PIECE;
        assert_eq!(file.len().unwrap(), len as u64);
        let mut bytes = vec![0; len];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), len);
        for (n, piece) in bytes.chunks(PIECE).enumerate() {
            assert!(
                piece.iter().all(|byte| usize::from(*byte) == n % THREADS + 1),
                "piece {n}"
            );
        }
    }
}

#[test]
fn past_the_page_cache_any_request_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let Some(file) = create(&path, true) else { return };
    let alignment = file.alignment();
    assert!(alignment.request.is_power_of_two() && alignment.memory.is_power_of_two());
    assert!((1..=65536).contains(&alignment.request));
    // Larger than what is copied at once, and nothing aligned.
    let bytes: Vec<u8> = (0..3_000_001_u32).map(|n| (n % 253) as u8).collect();
    file.write_all_at(&bytes[1..], 12_345).unwrap();
    assert_eq!(file.len().unwrap(), 12_345 + 3_000_000);
    let mut back = vec![0; 3_000_100];
    assert_eq!(file.read_at(&mut back[1..], 12_345).unwrap(), 3_000_000);
    assert!(back[1..3_000_001] == bytes[1..]);
    let mut bufs: Vec<IoSliceMut<'_>> = back.chunks_mut(99_999).map(IoSliceMut::new).collect();
    assert_eq!(file.read_vectored_at(&mut bufs, 0).unwrap(), 3_000_100);
    assert!(back[..12_345].iter().all(|byte| *byte == 0));
    assert!(back[12_345..3_000_100] == bytes[1..3_000_100 - 12_345 + 1]);
    file.flush().unwrap();
    drop(file);
    assert!(fs::read(&path).unwrap()[12_345..] == bytes[1..]);
}

#[test]
fn takes_over_a_file_in_memory() {
    let memory = rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = LocalFile::from_file(File::from(memory), "memory").unwrap();
    assert!(file.is_writable());
    assert_eq!(file.locking(), Locking::Off);
    file.write_all_at(b"bytes", 1 << 20).unwrap();
    assert_eq!(spans(&file)[0].kind, SpanKind::Hole);
    assert_eq!(file.set_lock(LockMode::Write).unwrap(), Locking::Held);
    assert_eq!(file.set_lock(LockMode::None).unwrap(), Locking::Off);
}

#[test]
fn asking_who_holds_what_is_not_there_is_an_error() {
    let missing = PathBuf::from("/nonexistent/image");
    assert_eq!(holders(missing).unwrap_err().kind(), ErrorKind::NotFound);
}
