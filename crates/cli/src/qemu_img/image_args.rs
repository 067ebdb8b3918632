//! How a command line says which image it means and how it is opened: `-f`, `--image-opts`, `-U` and `--object`.

use super::getopt::Key;
use super::objects::Objects;
use super::open::{self, Named, Opened, Purpose};
use super::program::{Program, Result, error};

/// Those options.
#[derive(Debug, Default)]
pub struct ImageArgs {
    /// `-f`.
    pub format: Option<String>,
    /// `--image-opts`.
    pub image_opts: bool,
    /// `-U`.
    pub shared: bool,
    objects: Objects,
}

impl ImageArgs {
    /// Takes an option that is one of these. Those that a subcommand knows and does nothing about come here too.
    pub fn take(&mut self, key: Key, value: String) -> Result<()> {
        match key {
            Key::Letter('f') => self.format = Some(value),
            Key::Letter('U') => self.shared = true,
            Key::Word("image-opts") => self.image_opts = true,
            Key::Word("object") => self.objects.add(&value)?,
            _ => {}
        }
        Ok(())
    }

    /// Refuses a format beside options that name one; not all subcommands do.
    pub fn check(&self) -> Result<()> {
        if self.image_opts && self.format.is_some() {
            return Err(error("--image-opts and --format are mutually exclusive"));
        }
        Ok(())
    }

    /// The image that a word names.
    pub fn named<'a>(&'a self, word: &'a str) -> Named<'a> {
        Named {
            word,
            format: self.format.as_deref(),
            options: self.image_opts,
        }
    }

    /// Opens the image that a word names.
    pub fn open(&self, program: &Program, word: &str, purpose: Purpose) -> Result<Opened> {
        let shared = self.shared;
        open::open(program, self.named(word), Purpose { shared, ..purpose })
    }
}
