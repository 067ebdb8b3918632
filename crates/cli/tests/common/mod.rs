//! What the tests of the command share: images made by qemu-img, and the command run on them.

use std::path::Path;
use std::process::{Command, Output};

/// A folder of images.
pub struct Images(tempfile::TempDir);

impl Images {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs a program there; it must succeed.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        let output = Command::new(program)
            .current_dir(self.path())
            .args(args)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn img(&self, args: &str) -> String {
        self.run("qemu-img", &args.split(' ').collect::<Vec<_>>())
    }

    /// Runs qemu-io's commands on an image.
    pub fn io(&self, format: &str, image: &str, commands: &[&str]) {
        let mut args = vec!["-f", format];
        args.extend(commands.iter().flat_map(|command| ["-c", command]));
        args.push(image);
        self.run("qemu-io", &args);
    }

    /// Runs the command there, on a page of 80 Unicode columns.
    pub fn catena(&self, args: &[&str]) -> Answer {
        let output = Command::new(env!("CARGO_BIN_EXE_catena"))
            .current_dir(self.path())
            .env("LC_ALL", "C.UTF-8")
            .env("COLUMNS", "80")
            .args(args)
            .output()
            .unwrap();
        Answer::of(&output)
    }
}

/// What the command said.
#[derive(Debug)]
pub struct Answer {
    pub status: i32,
    pub out: String,
    pub err: String,
}

impl Answer {
    fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            status: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    /// The output, which must be JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
