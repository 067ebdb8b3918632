//! Which snapshot of a domain is meant: the options that `snapshot --domain` and `snapshot-xml` share.

use crate::error::CommandError;
use crate::target::parse_format;
use catena::{Error, ErrorKind};
use catena_virt::snapshot::{Mode, Request, SnapshotError, Wish};
use std::time::{SystemTime, UNIX_EPOCH};

/// What the command line says.
#[derive(Debug, clap::Args)]
pub struct RequestArgs {
    /// The snapshot's name [default: the seconds since 1970]
    #[arg(long)]
    name: Option<String>,
    /// What is to be done about a disk; may be given several times: vda=OVERLAY, or as virsh's --diskspec has it,
    /// 'vda,snapshot=no' or 'vda,file=OVERLAY,driver=qcow2'
    #[arg(long = "disk", value_name = "SPEC", value_parser = parse_wish)]
    disks: Vec<Wish>,
}

impl RequestArgs {
    /// The snapshot's name.
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| now().to_string())
    }

    /// As it is decided upon.
    pub fn request(&self, description: Option<&str>) -> Request {
        Request {
            name: self.name(),
            description: description.map(str::to_owned),
            disks: self.disks.clone(),
        }
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

impl From<SnapshotError> for CommandError {
    fn from(error: SnapshotError) -> Self {
        Error::new(ErrorKind::Conflict, error.to_string()).into()
    }
}

fn parse_wish(text: &str) -> Result<Wish, String> {
    let overlay = |path: &str| std::path::absolute(path).map_err(|error| format!("'{path}': {error}"));
    if let Some((disk, path)) = text.split_once('=')
        && !disk.contains(',')
    {
        return Ok(Wish {
            disk: disk.to_owned(),
            overlay: Some(overlay(path)?),
            ..Wish::default()
        });
    }
    let mut words = words(text).into_iter();
    let mut wish = Wish {
        disk: words.next().unwrap_or_default(),
        ..Wish::default()
    };
    for word in words {
        let known = "snapshot=, driver= and file=";
        match word.split_once('=') {
            Some(("snapshot", mode)) => {
                let mode = Mode::from_libvirt(mode).ok_or("snapshot= is no, internal, external or manual")?;
                wish.mode = Some(mode);
            }
            Some(("driver", format)) => wish.format = Some(parse_format(format)?),
            Some(("file", path)) => wish.overlay = Some(overlay(path)?),
            Some(("stype", "file")) => {}
            _ => return Err(format!("'{word}' is not understood: known are {known}")),
        }
    }
    Ok(wish)
}

/// What commas separate; two are one that does not.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, words.last_mut()) {
            (',', Some(word)) if rest.peek() == Some(&',') => {
                rest.next();
                word.push(',');
            }
            (',', _) => words.push(String::new()),
            (c, Some(word)) => word.push(c),
            (_, None) => {}
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use catena::Format;
    use std::path::PathBuf;

    #[test]
    fn disks_are_named_as_virsh_has_them_or_with_their_overlay() {
        let wish = |text| parse_wish(text).unwrap();
        assert_eq!(wish("vda=/a,b").overlay, Some(PathBuf::from("/a,b")));
        assert_eq!(wish("vda").overlay, None);
        let long = wish("/i/a,,b,snapshot=external,file=/x,,y,driver=qcow2");
        assert_eq!((long.disk.as_str(), long.mode), ("/i/a,b", Some(Mode::External)));
        assert_eq!(
            (long.overlay, long.format),
            (Some("/x,y".into()), Some(Format::Qcow2))
        );
        assert!(parse_wish("vda,snapshot=perhaps").is_err());
        assert!(parse_wish("vda,size=1").is_err());
    }
}
