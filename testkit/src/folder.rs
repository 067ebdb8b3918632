//! A folder of images for one test, with the tools to make and damage them.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A temporary folder that goes with the test. Every tool runs in it, so names are short and relative.
#[derive(Debug)]
pub struct Folder(TempDir);

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

impl Folder {
    /// An empty folder.
    ///
    /// # Panics
    /// If there is no place for it.
    #[must_use]
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Where a file of it is.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Runs a program there, and gives what it wrote.
    ///
    /// # Panics
    /// If it fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program)
            .current_dir(self.path())
            .args(arguments)
            .output()
            .expect(program);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs `qemu-img` with words that are separated by spaces.
    pub fn img(&self, arguments: &str) -> String {
        self.run("qemu-img", &arguments.split(' ').collect::<Vec<_>>())
    }

    /// Runs commands of `qemu-io` on an image.
    pub fn io(&self, format: &str, image: &str, commands: &[&str]) {
        let mut arguments = vec!["-f", format];
        arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
        arguments.push(image);
        self.run("qemu-io", &arguments);
    }

    /// Writes bytes over a file behind everybody's back.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn patch(&self, name: &str, offset: u64, bytes: &[u8]) {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(self.file(name))
            .expect(name);
        file.write_all_at(bytes, offset).expect(name);
    }

    /// Makes the backing format extension of a qcow2 image, which QEMU writes first, one that nobody knows.
    pub fn forget_format(&self, image: &str) {
        self.patch(image, 112, &[0x12, 0x34, 0x56, 0x78]);
    }
}
