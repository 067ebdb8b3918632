//! QEMU's image locks, against QEMU's own tools: each side refuses exactly what two of QEMU's would.

#![cfg(test)]

use catena_storage::{
    ErrorKind, Hold, Holder, LocalFile, LockMode, Locking, OpenOptions, Permissions, Storage, holders,
};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

struct Image {
    path: PathBuf,
    _folder: TempDir,
}

impl Image {
    fn new(format: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(format!("image.{format}"));
        let (ok, message) = qemu_img(&["create", "-q", "-f", format], &path, &["16M"]);
        assert!(ok, "{message}");
        Self {
            path,
            _folder: folder,
        }
    }

    fn open(&self, lock: LockMode) -> catena_storage::Result<LocalFile> {
        let write = lock == LockMode::Write;
        LocalFile::open(&self.path, &OpenOptions::new().write(write).lock(lock))
    }
}

/// Runs a tool on the image: whether it succeeded, and its first words if not.
fn run(tool: &str, before: &[&str], path: &Path, after: &[&str]) -> (bool, String) {
    let output = Command::new(tool)
        .args(before)
        .arg(path)
        .args(after)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{tool} is needed for this test: {error}"));
    let text = [output.stderr, output.stdout].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let refused = text.contains("Failed to get") || text.contains("Failed to lock");
    (output.status.success() && !refused, text)
}

fn qemu_img(before: &[&str], path: &Path, after: &[&str]) -> (bool, String) {
    run("qemu-img", before, path, after)
}

/// Which lock a message says cannot be had, to compare ours with QEMU's: `shared "write"`.
fn words(message: &str) -> Option<String> {
    let (_, tail) = message.split_once("Failed to get ")?;
    let (which, _) = tail.split_once(" lock")?;
    Some(which.to_owned())
}

/// A QEMU process that has the image open until it is dropped, which ends its input.
struct Qemu(Child);

impl Qemu {
    fn holding(path: &Path, options: &[&str]) -> Self {
        let child = Command::new("qemu-io")
            .args(options)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap_or_else(|error| panic!("qemu-io is needed for this test: {error}"));
        Self::once_settled(child, path)
    }

    fn once_settled(child: Child, path: &Path) -> Self {
        let mut this = Self(child);
        let start = Instant::now();
        // It takes and gives up locks while it opens the image: what counts are those it has settled on.
        while this.settled(path) != this.settled(path) || this.settled(path).is_none() {
            assert!(
                this.0.try_wait().unwrap().is_none(),
                "QEMU could not open the image"
            );
            assert!(start.elapsed() < Duration::from_secs(30), "QEMU takes no lock");
        }
        this
    }

    fn settled(&self, path: &Path) -> Option<Permissions> {
        sleep(Duration::from_millis(50));
        let all = holders(path).unwrap();
        all.into_iter().find_map(|holder| match holder.hold {
            Hold::Locked(permissions) if holder.pid == Some(self.0.id()) => Some(permissions),
            _ => None,
        })
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

const READER: &[&str] = &["-r", "-f", "qcow2"];
const WRITER: &[&str] = &["-f", "qcow2"];
const SHARING_READER: &[&str] = &["-r", "-U", "-f", "qcow2"];

/// What each of QEMU's tools says about the image now.
fn qemu_reads(image: &Image) -> (bool, String) {
    qemu_img(&["info"], &image.path, &[])
}

fn qemu_checks(image: &Image) -> (bool, String) {
    qemu_img(&["check"], &image.path, &[])
}

fn qemu_writes(image: &Image) -> (bool, String) {
    run("qemu-io", &["-c", "write 0 4k"], &image.path, &[])
}

#[test]
fn takes_the_locks_that_qemu_takes() {
    let image = Image::new("qcow2");
    for (options, permissions) in [
        (WRITER, LockMode::Write.permissions()),
        (READER, LockMode::Read.permissions()),
        (SHARING_READER, Permissions::READ_SHARED),
    ] {
        let qemu = Qemu::holding(&image.path, options);
        assert_eq!(qemu.settled(&image.path), Some(permissions), "{options:?}");
        drop(qemu);
        let ours = image.open(LockMode::Exact(permissions)).unwrap();
        assert_eq!(ours.locking(), Locking::Held);
        let expected = Holder {
            pid: Some(std::process::id()),
            hold: Hold::Locked(permissions),
            ..holders(&image.path).unwrap().remove(0)
        };
        assert_eq!(holders(&image.path).unwrap(), [expected]);
    }
}

#[test]
fn we_are_refused_when_qemu_is_and_told_who_is_in_the_way() {
    let image = Image::new("qcow2");
    for options in [None, Some(WRITER), Some(READER), Some(SHARING_READER)] {
        let qemu = options.map(|options| Qemu::holding(&image.path, options));
        for (mode, theirs) in [
            (LockMode::Read, qemu_reads(&image)),
            (LockMode::Read, qemu_checks(&image)),
            (LockMode::Write, qemu_writes(&image)),
        ] {
            match image.open(mode) {
                Ok(file) => {
                    assert!(theirs.0, "{options:?} {mode:?}: {}", theirs.1);
                    assert_eq!(file.locking(), Locking::Held);
                }
                Err(error) => {
                    assert!(!theirs.0, "{options:?} {mode:?}: {error}");
                    assert_eq!(error.kind(), ErrorKind::Locked);
                    let detail = error.detail().unwrap();
                    assert_eq!(words(detail), words(&theirs.1));
                    assert!(detail.starts_with("Failed to get"), "{detail}");
                    let who = format!("qemu-io (pid {})", qemu.as_ref().unwrap().0.id());
                    assert!(detail.contains(&who), "{detail}");
                }
            }
        }
        let looking = image.open(LockMode::None).unwrap();
        assert_eq!(looking.locking(), Locking::Off);
        assert_eq!(looking.read_at(&mut [0; 4], 0).unwrap(), 4);
    }
}

#[test]
fn names_the_permission_and_the_process_in_one_sentence() {
    let image = Image::new("qcow2");
    let qemu = Qemu::holding(&image.path, WRITER);
    let (path, pid) = (image.path.display(), qemu.0.id());
    assert_eq!(
        image.open(LockMode::Write).unwrap_err().to_string(),
        format!(
            "cannot lock '{path}': Failed to get \"write\" lock: qemu-io (pid {pid}) does not let others write to it"
        ),
    );
    assert_eq!(
        image.open(LockMode::Read).unwrap_err().to_string(),
        format!(
            "cannot lock '{path}': Failed to get shared \"write\" lock: qemu-io (pid {pid}) has it open for writing"
        ),
    );
}

#[test]
fn qemu_is_refused_by_us_as_by_another_qemu() {
    let image = Image::new("qcow2");
    for (options, mode) in [
        (WRITER, LockMode::Write),
        (READER, LockMode::Read),
        (SHARING_READER, LockMode::Exact(Permissions::READ_SHARED)),
    ] {
        let ask = || [qemu_reads(&image), qemu_checks(&image), qemu_writes(&image)];
        let by_qemu = {
            let _qemu = Qemu::holding(&image.path, options);
            ask()
        };
        let _ours = image.open(mode).unwrap();
        for (by_us, by_qemu) in ask().into_iter().zip(by_qemu) {
            assert_eq!(by_us.0, by_qemu.0, "{mode:?}: {} {}", by_us.1, by_qemu.1);
            assert_eq!(words(&by_us.1), words(&by_qemu.1), "{mode:?}");
        }
        assert!(qemu_img(&["info", "-U"], &image.path, &[]).0);
    }
}

#[test]
fn while_we_write_qemu_img_fails_in_the_words_people_search_for() {
    let image = Image::new("qcow2");
    let _ours = image.open(LockMode::Write).unwrap();
    let (ok, message) = qemu_reads(&image);
    assert!(!ok);
    assert!(
        message.contains("Failed to get shared \"write\" lock"),
        "{message}"
    );
}

#[test]
fn a_raw_image_may_be_read_beside_its_reader_but_not_written() {
    let image = Image::new("raw");
    let qemu = Qemu::holding(&image.path, &["-r", "-f", "raw"]);
    assert_eq!(qemu.settled(&image.path), Some(Permissions::READ_SHARED));
    image.open(LockMode::Read).unwrap();
    image.open(LockMode::Write).unwrap();
    drop(qemu);
    let _qemu = Qemu::holding(&image.path, &["-f", "raw"]);
    image.open(LockMode::Exact(Permissions::READ_SHARED)).unwrap();
    assert_eq!(image.open(LockMode::Read).unwrap_err().kind(), ErrorKind::Locked);
    assert_eq!(image.open(LockMode::Write).unwrap_err().kind(), ErrorKind::Locked);
}

#[test]
fn two_of_ours_exclude_each_other_within_one_process() {
    let image = Image::new("raw");
    let reader = image.open(LockMode::Read).unwrap();
    let second_reader = image.open(LockMode::Read).unwrap();
    let error = image.open(LockMode::Write).unwrap_err();
    let ourselves = format!(
        ": this process (pid {}) does not let others write to it",
        std::process::id()
    );
    assert!(error.to_string().ends_with(&ourselves), "{error}");
    drop((reader, second_reader));

    let writer = image.open(LockMode::Write).unwrap();
    assert_eq!(image.open(LockMode::Write).unwrap_err().kind(), ErrorKind::Locked);
    assert_eq!(image.open(LockMode::Read).unwrap_err().kind(), ErrorKind::Locked);
    image.open(LockMode::None).unwrap();
    let clone = writer.clone();
    drop(writer);
    assert_eq!(image.open(LockMode::Read).unwrap_err().kind(), ErrorKind::Locked);
    drop(clone);
    image.open(LockMode::Write).unwrap();
}

#[test]
fn locks_are_exchanged_or_else_kept() {
    let image = Image::new("raw");
    let options = OpenOptions::new().write(true).lock(LockMode::Read);
    let ours = LocalFile::open(&image.path, &options).unwrap();
    let other = image.open(LockMode::Read).unwrap();
    let error = ours.set_lock(LockMode::Write).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert_eq!(ours.locking(), Locking::Held);
    // Refused, so still a reader: others may read and nobody write.
    image.open(LockMode::Read).unwrap();
    drop(other);
    assert_eq!(image.open(LockMode::Write).unwrap_err().kind(), ErrorKind::Locked);
    assert_eq!(ours.set_lock(LockMode::Write).unwrap(), Locking::Held);
    assert_eq!(image.open(LockMode::Read).unwrap_err().kind(), ErrorKind::Locked);
    assert_eq!(ours.set_lock(LockMode::Read).unwrap(), Locking::Held);
    image.open(LockMode::Read).unwrap();
    assert_eq!(ours.set_lock(LockMode::None).unwrap(), Locking::Off);
    image.open(LockMode::Write).unwrap();
}

#[test]
fn a_file_locked_as_a_whole_by_others_is_left_alone() {
    let image = Image::new("raw");
    // SQLite, NFS clients and virtlockd lock with `fcntl`, which the shell has no word for.
    let script = "import fcntl, sys\n\
        f = open(sys.argv[1], 'r+b')\n\
        fcntl.lockf(f, fcntl.LOCK_EX)\n\
        print('locked', flush=True)\n\
        sys.stdin.read()\n";
    let spawned = Command::new("python3")
        .args(["-c", script])
        .arg(&image.path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return catena_testkit::not_tested(format!("python3: {error}")),
    };
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(child.stdout.as_mut().unwrap()),
        &mut line,
    )
    .unwrap();
    let error = image.open(LockMode::Read).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    let who = format!(
        "Failed to lock byte 100: python3 (pid {}) has it locked for itself",
        child.id()
    );
    assert!(error.to_string().ends_with(&who), "{error}");
    drop(child.stdin.take());
    child.wait().unwrap();
    image.open(LockMode::Read).unwrap();
}

#[test]
fn who_merely_writes_is_found_too() {
    let image = Image::new("raw");
    let _unlocked = image.open(LockMode::None).unwrap();
    assert_eq!(holders(&image.path).unwrap(), []);
    let options = OpenOptions::new().write(true).lock(LockMode::None);
    let _writer = LocalFile::open(&image.path, &options).unwrap();
    let all = holders(&image.path).unwrap();
    assert_eq!(all.len(), 1);
    assert_eq!(
        (all[0].pid, all[0].hold),
        (Some(std::process::id()), Hold::Writing)
    );
}

#[test]
fn a_guest_that_has_the_image_is_called_by_its_name() {
    let image = Image::new("qcow2");
    let drive = format!("if=virtio,format=qcow2,file={}", image.path.display());
    let spawned = Command::new("qemu-system-x86_64")
        .args([
            "-name",
            "guest=web,debug-threads=on",
            "-S",
            "-display",
            "none",
            "-nodefaults",
        ])
        .args([
            "-machine",
            "pc,accel=tcg",
            "-m",
            "16",
            "-qmp",
            "stdio",
            "-drive",
            &drive,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn();
    let child = match spawned {
        Ok(child) => child,
        Err(error) => return catena_testkit::not_tested(format!("qemu-system-x86_64: {error}")),
    };
    let mut qemu = Qemu::once_settled(child, &image.path);
    let error = image.open(LockMode::Write).unwrap_err();
    let who = format!("qemu-system-x86_64 (pid {}, guest 'web')", qemu.0.id());
    assert!(error.to_string().contains(&who), "{error}");
    qemu.0.kill().unwrap();
}
