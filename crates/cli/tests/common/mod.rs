//! What the tests of the command share: images made by qemu-img, and the command run on them.

use catena_testkit::Folder;
use std::ops::Deref;
use std::process::{Command, Output};

/// A folder of images, in which the command is run too.
pub struct Images(Folder);

impl Deref for Images {
    type Target = Folder;

    fn deref(&self) -> &Folder {
        &self.0
    }
}

impl Images {
    pub fn new() -> Self {
        Self(Folder::new())
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
    /// What a finished process said.
    pub fn of(output: &Output) -> Self {
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
