//! What strace writes: its lines as calls.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// The calls that change a file, or carry changes to the disk, but for those that make one.
pub(super) const CHANGING: &str = "write,writev,pwrite64,pwritev,pwritev2,ftruncate,fallocate,copy_file_range,\
rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,symlink,symlinkat,mkdir,mkdirat,\
fsync,fdatasync,sync,syncfs,utimensat";

/// A call that has ended.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub thread: &'a str,
    pub name: String,
    pub arguments: Vec<String>,
    /// What it returned: -1 where it failed.
    pub result: i64,
}

/// What a line says.
#[derive(Debug)]
pub(super) enum Line<'a> {
    /// A thread is in a call while others do something.
    Began(&'a str),
    /// A call ended.
    Ended(Call<'a>),
}

/// The lines of a log, in order.
pub(super) fn lines(log: &str) -> Result<Vec<Line<'_>>> {
    let mut open: HashMap<&str, String> = HashMap::new();
    let mut lines = Vec::new();
    for line in log.lines() {
        let (thread, rest) = line.split_once(' ').context("a line without a thread")?;
        let rest = rest.trim_start();
        if let Some(begun) = rest.strip_suffix(" <unfinished ...>") {
            open.insert(thread, begun.to_owned());
            lines.push(Line::Began(thread));
            continue;
        }
        let text = match rest.strip_prefix("<... ") {
            Some(resumed) => {
                let (_, end) = resumed
                    .split_once(" resumed>")
                    .context("a strange end of a call")?;
                let mut begun = open.remove(thread).context("a call that never began")?;
                begun.push_str(end);
                begun
            }
            None => rest.to_owned(),
        };
        if let Some(call) = parse(thread, &text).with_context(|| short(&text))? {
            lines.push(Line::Ended(call));
        }
    }
    Ok(lines)
}

fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

fn parse<'a>(thread: &'a str, text: &str) -> Result<Option<Call<'a>>> {
    let (call, result) = text.rsplit_once(" = ").context("a call without a result")?;
    let result: String = { result.chars() }
        .take_while(|c| c.is_ascii_digit() || *c == '-')
        .collect();
    if result.is_empty() {
        // It did not return: the process ended.
        return Ok(None);
    }
    let call = call
        .trim_end()
        .strip_suffix(')')
        .context("a call without an end")?;
    let (name, arguments) = call.split_once('(').context("a call without arguments")?;
    Ok(Some(Call {
        thread,
        name: name.to_owned(),
        arguments: split(arguments),
        result: result.parse()?,
    }))
}

/// What is between commas, outside of brackets and strings.
pub(super) fn split(text: &str) -> Vec<String> {
    let (mut parts, mut depth, mut quoted) = (vec![String::new()], 0, false);
    for c in text.chars() {
        match c {
            '"' => quoted = !quoted,
            '[' | '{' | '(' if !quoted => depth += 1,
            ']' | '}' | ')' if !quoted => depth -= 1,
            ',' if !quoted && depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts.iter().map(|part| part.trim().to_owned()).collect()
}

/// The bytes of a string, all in hexadecimal.
pub(super) fn bytes(text: &str) -> Result<Vec<u8>> {
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    hexadecimal(text.context("no whole string")?)
}

fn hexadecimal(text: &str) -> Result<Vec<u8>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let digits = text
        .strip_prefix("\\x")
        .context("a string that is not hexadecimal")?;
    { digits.split("\\x") }
        .map(|digits| Ok(u8::from_str_radix(digits, 16)?))
        .collect()
}

/// A string that is a path.
pub(super) fn path(text: &str) -> Result<PathBuf> {
    Ok(OsString::from_vec(bytes(text)?).into())
}

/// A descriptor: its number, -1 for the current folder, and the path that it was told to be of.
#[derive(Clone, Debug)]
pub(super) struct Descriptor {
    pub number: i64,
    /// None where it has no name any more.
    pub path: Option<PathBuf>,
}

pub(super) fn descriptor(text: &str) -> Result<Descriptor> {
    let (number, path) = text.split_once('<').unwrap_or((text, ""));
    let number = match number {
        "AT_FDCWD" => -1,
        number => number.parse()?,
    };
    let path = match path.split_once('>') {
        Some((path, "")) if path.starts_with("\\x") => Some(OsString::from_vec(hexadecimal(path)?).into()),
        _ => None,
    };
    Ok(Descriptor { number, path })
}

/// A number, or the first of a list of one.
pub(super) fn number(text: &str) -> Result<u64> {
    let digits: String = text
        .trim_start_matches('[')
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().with_context(|| short(text))
}

/// What a field of a structure says.
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let start = text.find(&format!("{name}="))? + name.len() + 1;
    text.get(start..)
}

/// A mode, as it is written in octal.
pub(super) fn octal(text: &str) -> Result<u32> {
    Ok(u32::from_str_radix(text, 8)?)
}

/// The bytes of a list of buffers.
pub(super) fn vector(text: &str) -> Result<Vec<u8>> {
    let buffers = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let mut all = Vec::new();
    for buffer in split(buffers.context("no list of buffers")?) {
        let inside = buffer.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
        let fields = split(inside.context("no buffer")?);
        let base = fields.iter().find_map(|field| field.strip_prefix("iov_base="));
        all.extend(bytes(base.context("a buffer without bytes")?)?);
    }
    Ok(all)
}

/// A `struct timespec`; `None` where it stands for something else.
pub(super) fn time(text: &str) -> Result<Option<(i64, u32)>> {
    if text.starts_with("UTIME") {
        return Ok(None);
    }
    let (Some(seconds), Some(rest)) = (field(text, "tv_sec"), field(text, "tv_nsec")) else {
        bail!("no time: {}", short(text));
    };
    Ok(Some((number(seconds)?.try_into()?, number(rest)?.try_into()?)))
}
