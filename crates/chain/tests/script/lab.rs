//! A folder of images, and a process of its own that is killed while it works on them.

use catena::ops::Observer;
use catena::ops::script::{Direction, Journal, find};
use catena::{Chain, Error, GuestOffset, Policy, Start, detect};
use catena_testkit::Folder;
use rustix::process::{Signal, getpid, kill_process};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Where the process finds what it is to do: the test, the folder, what to do, and the point at which it is killed.
const ORDERS: &str = "CATENA_TEST_ORDERS";

/// Kills the process when it is asked for the nth time whether to go on.
pub struct KilledAt {
    nth: u32,
    asked: AtomicU32,
}

impl Observer for KilledAt {
    fn progress(&self, done: u64, total: u64) {
        assert!(done <= total, "{done} of {total}");
    }

    fn cancelled(&self) -> bool {
        if self.asked.fetch_add(1, Ordering::Relaxed) == self.nth {
            kill_process(getpid(), Signal::KILL).unwrap();
        }
        false
    }
}

/// Stops when it is asked for the nth time whether to go on.
#[derive(Default)]
pub struct StoppedAt {
    pub nth: u32,
    pub asked: AtomicU32,
}

impl Observer for StoppedAt {
    fn progress(&self, _done: u64, _total: u64) {}

    fn cancelled(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) >= self.nth
    }
}

/// What a process is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// The operation, from its beginning.
    Perform,
    Finish,
    TakeBack,
}

/// What such a process does: the operation of a test that is given the folder.
pub type Operation = fn(&Path, &dyn Observer) -> Result<(), Error>;

/// Called by a test of its own in the process that is killed; does nothing in any other.
pub fn obey(test: &str, operation: Operation) {
    let Ok(orders) = std::env::var(ORDERS) else { return };
    let [name, folder, task, nth] = orders.split('\n').collect::<Vec<_>>()[..] else {
        panic!("{orders}");
    };
    if name != test {
        return;
    }
    let (folder, nth) = (PathBuf::from(folder), nth.parse().unwrap());
    let observer = KilledAt {
        nth,
        asked: AtomicU32::new(0),
    };
    let result = match task {
        "Perform" => operation(&folder, &observer),
        "Finish" => resume_observed(&folder, Direction::Finish, &observer),
        _ => resume_observed(&folder, Direction::TakeBack, &observer),
    };
    if let Err(error) = result {
        panic!("{}", error.full());
    }
}

/// Has a process do it and be killed at a point; whether it got to the end instead.
pub fn killed(test: &str, folder: &Path, task: Task, nth: u32) -> bool {
    let orders = format!("{test}\n{}\n{task:?}\n{nth}", folder.display());
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(ORDERS, orders)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let killed = std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(9);
    assert!(
        killed || output.status.success(),
        "{test} {task:?} at {nth}: {said}"
    );
    !killed
}

/// The journals in a folder.
pub fn journals(folder: &Path) -> Vec<PathBuf> {
    find(&[folder]).unwrap()
}

pub fn resume(folder: &Path, direction: Direction) -> Result<(), Error> {
    resume_observed(folder, direction, &catena::ops::Silent)
}

fn resume_observed(folder: &Path, direction: Direction, observer: &dyn Observer) -> Result<(), Error> {
    for path in journals(folder) {
        Journal::open(&path)?.resume(direction, &Policy::libvirt(), observer)?;
    }
    Ok(())
}

/// What the guest of an image sees.
pub fn shown(image: &Path) -> Vec<u8> {
    let chain: Chain = detect(&Start::at(image, None), &Policy::libvirt());
    let disk = chain
        .open(catena::open::Sharing::Locked)
        .unwrap_or_else(|error| panic!("{}: {}", image.display(), error.full()));
    let mut bytes = vec![0; usize::try_from(catena::Disk::size(&disk)).unwrap()];
    catena::Disk::read_at(&disk, &mut bytes, GuestOffset(0)).unwrap();
    bytes
}

/// A copy of a folder.
pub fn copy(folder: &Folder) -> Folder {
    let copy = Folder::new();
    let from = format!("{}/.", folder.path().display());
    copy.run("cp", &["-a", &from, "."]);
    copy
}

/// The names of everything below a folder, in order, with what links lead to.
pub fn listing(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            match std::fs::read_link(&path) {
                Ok(target) => found.push(format!("{name} -> {}", target.display())),
                Err(_) if path.is_dir() => {
                    found.push(format!("{name}/"));
                    folders.push(path);
                }
                Err(_) => found.push(name),
            }
        }
    }
    found.sort();
    found
}

/// A program that has an image open for writing, until it is dropped.
pub struct Guest(Child);

impl Guest {
    pub fn of(folder: &Folder, format: &str, image: &str) -> Self {
        let mut io = Command::new("qemu-io")
            .args(["-f", format, image])
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // The prompt comes when it has the image open.
        let mut prompt = [0; 1];
        std::io::Read::read_exact(io.stdout.as_mut().unwrap(), &mut prompt).unwrap();
        Self(io)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}
