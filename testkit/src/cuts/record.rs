//! What strace saw a program do, as events on a [`Disk`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::disk::{Disk, Node, Synced};
use super::draw::{Cuts, Order};
use super::strace::{self, Call, Descriptor, Line};
use super::tree::{Entry, Identity, Tree};

/// What must be seen to know what became of the files.
pub(super) const RECORDED: &str = "open,openat,openat2,creat,lseek,dup,dup2,dup3,\
write,writev,pwrite64,pwritev,pwritev2,truncate,ftruncate,fallocate,copy_file_range,sendfile,splice,ioctl,\
rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,symlink,symlinkat,mkdir,mkdirat,\
fsync,fdatasync,sync,syncfs,utimensat,statx";

/// A run as it was recorded.
#[derive(Debug)]
pub struct Recording {
    disk: Disk,
}

impl Recording {
    /// Of a program that ran in a folder.
    pub(super) fn new(start: &Tree, folder: &Path, log: &str) -> Result<Self> {
        let mut recorder = Recorder {
            disk: Disk::new(start)?,
            folder: folder.to_owned(),
            open: HashMap::new(),
        };
        let mut began = HashMap::new();
        for line in strace::lines(log)? {
            match line {
                Line::Began(thread) => {
                    began.insert(thread, recorder.disk.events.len());
                }
                Line::Ended(call) => {
                    let covers = began.remove(call.thread).unwrap_or(recorder.disk.events.len());
                    if call.result >= 0 {
                        let what = || {
                            format!(
                                "{}({})",
                                call.name,
                                call.arguments.join(", ").get(..300).unwrap_or("")
                            )
                        };
                        recorder.learn(&call, covers).with_context(what)?;
                    }
                }
            }
        }
        let recording = Self { disk: recorder.disk };
        recording.check()?;
        Ok(recording)
    }

    /// Whether the folders are what they must have become.
    fn check(&self) -> Result<()> {
        let known = self.disk.tree();
        let is = Tree::read(known.roots.clone())?;
        for path in known.names().chain(is.names()) {
            let same = match (known.entries.get(path), is.entries.get(path)) {
                (Some(Entry::File(_)), Some(Entry::File(_))) => known.content(path) == is.content(path),
                (known, is) => known == is,
            };
            if !same {
                bail!("{} is not what it became as far as that was seen", path.display());
            }
        }
        Ok(())
    }

    /// The folders as a power cut may leave them, so many different ones, or as many as there are.
    #[must_use]
    pub fn cuts(&self, order: Order, seed: u64, how_many: usize) -> Cuts<'_> {
        Cuts::new(&self.disk, order, seed, how_many)
    }
}

struct Recorder {
    disk: Disk,
    /// Where the program runs.
    folder: PathBuf,
    /// What descriptors lead to, and where they are in it.
    open: HashMap<i64, (Node, u64)>,
}

impl Recorder {
    fn learn(&mut self, call: &Call<'_>, covers: usize) -> Result<()> {
        let argument = |at: usize| {
            let argument = call.arguments.get(at).map(String::as_str);
            argument.context("too few arguments")
        };
        let number = |at: usize| strace::number(argument(at)?);
        match call.name.as_str() {
            "open" | "creat" => bail!("a file is opened in a way that is not looked for"),
            "openat" | "openat2" => {
                let path = self.path(argument(0)?, argument(1)?)?;
                let flags = argument(2)?;
                let mode = argument(3).and_then(strace::octal).unwrap_or(0o644);
                self.opened(&path, flags, mode, call.result)?;
            }
            "dup" | "dup2" | "dup3" => {
                // They go on together, which is not followed: whoever writes through both is found out in the end.
                if let Some(file) = self.open.get(&strace::descriptor(argument(0)?)?.number).copied() {
                    self.open.insert(call.result, file);
                }
            }
            "lseek" => {
                if let Some((_, at)) = self.open.get_mut(&strace::descriptor(argument(0)?)?.number) {
                    *at = call.result.try_into()?;
                }
            }
            "write" => {
                let bytes = argument(1)?;
                self.written(argument(0)?, None, || strace::bytes(bytes), call.result)?;
            }
            "pwrite64" => {
                let (bytes, offset) = (argument(1)?, number(3)?);
                self.written(argument(0)?, Some(offset), || strace::bytes(bytes), call.result)?;
            }
            "writev" => {
                let parts = argument(1)?;
                self.written(argument(0)?, None, || strace::vector(parts), call.result)?;
            }
            "pwritev" | "pwritev2" => {
                let (parts, offset) = (argument(1)?, number(3)?);
                self.written(argument(0)?, Some(offset), || strace::vector(parts), call.result)?;
            }
            "truncate" => bail!("a file is cut in a way that is not looked for"),
            "ftruncate" => {
                if let Some(node) = self.node(argument(0)?)? {
                    self.disk.set_len(node, number(1)?);
                }
            }
            "fallocate" => self.allocated(argument(0)?, argument(1)?, number(2)?, number(3)?)?,
            "copy_file_range" => {
                let (from, to) = (argument(0)?, argument(2)?);
                let len = call.result.try_into()?;
                self.copied((from, number(1)?), (to, number(3)?), len)?;
            }
            "sendfile" | "splice" if self.node(argument(0)?)?.is_some() => {
                bail!("bytes are moved in a way that is not looked for");
            }
            "ioctl" => self.shared(argument(0)?, argument(1)?, argument(2).unwrap_or_default())?,
            "rename" => self.renamed(&self.absolute(argument(0)?)?, &self.absolute(argument(1)?)?)?,
            "renameat" | "renameat2" => {
                if argument(4).is_ok_and(|flags| flags.contains("EXCHANGE")) {
                    bail!("two names are exchanged");
                }
                let from = self.path(argument(0)?, argument(1)?)?;
                let to = self.path(argument(2)?, argument(3)?)?;
                self.renamed(&from, &to)?;
            }
            "linkat" => {
                let from = self.path(argument(0)?, argument(1)?)?;
                let to = self.path(argument(2)?, argument(3)?)?;
                if self.is_here(&to) {
                    let node = self.disk.find(&from).context("what is linked is not known")?;
                    self.disk.name(&to, node)?;
                }
            }
            "unlinkat" => {
                let path = self.path(argument(0)?, argument(1)?)?;
                self.removed(&path)?;
            }
            "unlink" | "rmdir" => self.removed(&self.absolute(argument(0)?)?)?,
            "symlink" | "symlinkat" => {
                let last = call.arguments.len() - 1;
                let path = match last {
                    1 => self.absolute(argument(1)?)?,
                    _ => self.path(argument(1)?, argument(2)?)?,
                };
                if self.is_here(&path) {
                    self.disk.make_link(&path, strace::path(argument(0)?)?)?;
                }
            }
            "mkdir" => self.made_folder(&self.absolute(argument(0)?)?)?,
            "mkdirat" => {
                let path = self.path(argument(0)?, argument(1)?)?;
                self.made_folder(&path)?;
            }
            "link" => bail!("a file is linked in a way that is not looked for"),
            "fsync" => {
                if let Some(node) = self.node(argument(0)?)? {
                    self.disk.sync(covers, Synced::Node(node));
                }
            }
            "fdatasync" => {
                if let Some(node) = self.node(argument(0)?)? {
                    self.disk.sync(covers, Synced::Content(node));
                }
            }
            "syncfs" => {
                if let Some(node) = self.node(argument(0)?)? {
                    let root = self.disk.root(node);
                    self.disk.sync(covers, Synced::All(root));
                }
            }
            "sync" => {
                for root in 0..self.disk.roots() {
                    self.disk.sync(covers, Synced::All(root));
                }
            }
            "utimensat" => {
                let node = match argument(1)? {
                    "NULL" => self.node(argument(0)?)?,
                    path => self.disk.find(&self.path(argument(0)?, path)?),
                };
                let times = argument(2)?;
                let times = times.strip_prefix('[').and_then(|times| times.strip_suffix(']'));
                let times = strace::split(times.context("no times are given")?);
                let modified = strace::time(times.get(1).context("no time is given")?)?;
                if let (Some(node), Some(time)) = (node, modified) {
                    self.disk.set_time(node, time);
                }
            }
            "statx" => self.looked_at(argument(0)?, argument(1)?, argument(4)?)?,
            _ => {}
        }
        Ok(())
    }

    fn absolute(&self, path: &str) -> Result<PathBuf> {
        Ok(self.folder.join(strace::path(path)?))
    }

    fn path(&self, folder: &str, path: &str) -> Result<PathBuf> {
        let path = strace::path(path)?;
        if path.is_absolute() {
            return Ok(path);
        }
        let Descriptor { number, path: known } = strace::descriptor(folder)?;
        Ok(known.with_context(|| format!("where {number} is"))?.join(path))
    }

    /// Whether a path is one in these folders.
    fn is_here(&self, path: &Path) -> bool {
        self.disk.place(path).is_some()
    }

    /// The file or folder of a descriptor; none where it is elsewhere.
    fn node(&self, text: &str) -> Result<Option<Node>> {
        let descriptor = strace::descriptor(text)?;
        let by_name = descriptor.path.and_then(|path| self.disk.find(&path));
        let by_number = || self.open.get(&descriptor.number).map(|(node, _)| *node);
        Ok(by_name.or_else(by_number))
    }

    fn opened(&mut self, path: &Path, flags: &str, mode: u32, descriptor: i64) -> Result<()> {
        self.open.remove(&descriptor);
        let node = match self.disk.find(path) {
            Some(node) => {
                if flags.contains("O_TRUNC") {
                    self.disk.set_len(node, 0);
                }
                node
            }
            None if flags.contains("O_CREAT") && self.is_here(path) => self.disk.make_file(path, mode)?,
            None => return Ok(()),
        };
        if flags.contains("O_APPEND") || flags.contains("O_TMPFILE") {
            bail!("a file is opened to be written in a way that is not looked for");
        }
        self.open.insert(descriptor, (node, 0));
        Ok(())
    }

    fn written(
        &mut self,
        descriptor: &str,
        offset: Option<u64>,
        bytes: impl FnOnce() -> Result<Vec<u8>>,
        len: i64,
    ) -> Result<()> {
        let Some(node) = self.node(descriptor)? else {
            return Ok(());
        };
        let mut bytes = bytes()?;
        bytes.truncate(len.try_into()?);
        let at = match offset {
            Some(offset) => offset,
            None => {
                let number = strace::descriptor(descriptor)?.number;
                let (_, at) = self.open.get_mut(&number).context("where it is in the file")?;
                let offset = *at;
                *at += bytes.len() as u64;
                offset
            }
        };
        self.disk.write(node, at, bytes);
        Ok(())
    }

    fn allocated(&mut self, descriptor: &str, mode: &str, offset: u64, len: u64) -> Result<()> {
        let Some(node) = self.node(descriptor)? else {
            return Ok(());
        };
        let keeps = mode.contains("KEEP_SIZE");
        if mode.contains("COLLAPSE") || mode.contains("INSERT") {
            bail!("a range is taken out of a file, or put into it");
        }
        let now = self.disk.len(node);
        if mode.contains("PUNCH_HOLE") || mode.contains("ZERO_RANGE") {
            let end = (offset + len).min(now);
            if offset < end {
                self.disk.write(node, offset, vec![0; (end - offset) as usize]);
            }
        }
        if !keeps && offset + len > now {
            self.disk.set_len(node, offset + len);
        }
        Ok(())
    }

    fn copied(&mut self, from: (&str, u64), to: (&str, u64), len: u64) -> Result<()> {
        let Some(target) = self.node(to.0)? else {
            return Ok(());
        };
        let source = self.node(from.0)?.context("what is copied is not known")?;
        let range = from.1 as usize..(from.1 + len) as usize;
        let bytes = { self.disk.bytes(source) }
            .and_then(|bytes| bytes.get(range))
            .context("more is copied than there is")?
            .to_vec();
        self.disk.write(target, to.1, bytes);
        Ok(())
    }

    /// Clones of files and ranges are copies that cost nothing.
    fn shared(&mut self, descriptor: &str, what: &str, with: &str) -> Result<()> {
        if what.contains("FICLONERANGE") {
            let field = |name| strace::field(with, name).context("a field of a clone");
            let source = field("src_fd")?;
            let source = source.split_once(',').map_or(source, |(source, _)| source);
            let (from, to) = (
                strace::number(field("src_offset")?)?,
                strace::number(field("dest_offset")?)?,
            );
            let len = strace::number(field("src_length")?)?;
            self.copied((source, from), (descriptor, to), len)?;
        } else if what.contains("FICLONE") {
            let len = self.node(with)?.map_or(0, |node| self.disk.len(node));
            self.copied((with, 0), (descriptor, 0), len)?;
        }
        Ok(())
    }

    fn renamed(&mut self, from: &Path, to: &Path) -> Result<()> {
        match (self.is_here(from), self.is_here(to)) {
            (true, true) => self.disk.rename(from, to),
            (false, false) => Ok(()),
            _ => bail!("something leaves the folders, or comes there"),
        }
    }

    fn removed(&mut self, path: &Path) -> Result<()> {
        if self.is_here(path) {
            self.disk.unname(path)?;
        }
        Ok(())
    }

    fn made_folder(&mut self, path: &Path) -> Result<()> {
        if self.is_here(path) {
            self.disk.make_folder(path)?;
        }
        Ok(())
    }

    fn looked_at(&mut self, folder: &str, path: &str, found: &str) -> Result<()> {
        let node = if path == "NULL" || strace::bytes(path)?.is_empty() {
            self.node(folder)?
        } else {
            self.disk.find(&self.path(folder, path)?)
        };
        let (Some(node), Some(inode), Some(born), Some(modified)) = (
            node,
            strace::field(found, "stx_ino"),
            strace::field(found, "stx_btime"),
            strace::field(found, "stx_mtime"),
        ) else {
            return Ok(());
        };
        let inode = strace::number(inode)?;
        if let (Some(born), Some(modified)) = (strace::time(born)?, strace::time(modified)?) {
            self.disk.learn(node, Identity { inode, born }, modified);
        }
        Ok(())
    }
}
