//! What may be opened because another file names it, and which formats may be believed.
//!
//! Nothing in the library opens a reference without asking a [`Policy`]. The image the user names is not asked about:
//! the user is trusted to mean it. `docs/policy.md` describes the file form.

use crate::reference::{Location, Source};
use catena_engine::{Error, ErrorKind, Result};
use catena_storage::{LocalFile, LockMode, OpenOptions, Storage};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use serde::Deserialize;
use std::path::{Component, Path, PathBuf};

/// Most layers a chain may have unless a policy says otherwise.
pub const MAX_DEPTH: usize = 10_000;
/// The longest policy file that is read, in bytes.
const FILE_BYTES: u64 = 1 << 20;
/// Files are digested in pieces of this size.
const DIGEST_PIECE: usize = 1 << 20;

/// The rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    name: String,
    rules: Rules,
}

/// The file form, which is also what the named policies are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Rules {
    formats: Formats,
    trust: Trust,
    reach: Reach,
    bases: Bases,
}

/// Which formats may be believed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Formats {
    unrecorded: Unrecorded,
}

/// What to do about a backing image whose format is not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unrecorded {
    /// Probe it, and accept it if it turns out a leaf: libvirt's tolerance.
    Leaf,
    /// Refuse it.
    Refuse,
}

/// Which images may be probed whatever they turn out to be. An image is trusted if any of the rules says so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Trust {
    /// Folders no guest can write images into.
    roots: Vec<PathBuf>,
    /// Owners of files, by name or number.
    owners: Vec<Owner>,
    /// Digests of whole files, `sha256:…` or `blake3:…`.
    digests: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Owner {
    Id(u32),
    Name(String),
}

/// Where references may lead.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Reach {
    /// Folders that references may lead into; anywhere where absent. No link may lead out of them.
    folders: Option<Vec<PathBuf>>,
    /// Protocols that references may use, `file` among them; any where absent.
    schemes: Option<Vec<String>>,
    /// Whether `json:` references are followed.
    json: bool,
    /// Whether external data files are opened.
    data_files: bool,
    /// Most layers of a chain.
    depth: usize,
}

impl Default for Formats {
    fn default() -> Self {
        Self {
            unrecorded: Unrecorded::Leaf,
        }
    }
}

impl Default for Reach {
    fn default() -> Self {
        Self {
            folders: None,
            schemes: None,
            json: true,
            data_files: true,
            depth: MAX_DEPTH,
        }
    }
}

/// What is made of stamps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Bases {
    changed: ChangedBase,
}

/// What is done about a backing image that is not the one its overlay was made on, as the overlay's stamp tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangedBase {
    /// Nothing is read through it.
    #[default]
    Refuse,
    /// It is read all the same: the user answers for it.
    Accept,
    /// Nobody looks, and stamps are neither given nor renewed: QEMU's way.
    #[serde(skip)]
    Ignore,
}

/// In which role a file is named by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// As its backing image.
    Backing,
    /// As its external data file.
    DataFile,
}

impl Default for Policy {
    fn default() -> Self {
        Self::libvirt()
    }
}

impl Policy {
    /// libvirt's rules: a backing image of unrecorded format is accepted if it turns out a leaf, and references lead
    /// anywhere. Unlike libvirt's, a leaf has no data file either.
    pub fn libvirt() -> Self {
        Self {
            name: "libvirt".to_owned(),
            rules: Rules::default(),
        }
    }

    /// For images from strangers: every format must be recorded, references are plain file names, and there are no
    /// data files.
    pub fn strict() -> Self {
        let reach = Reach {
            schemes: Some(vec!["file".to_owned()]),
            json: false,
            data_files: false,
            ..Reach::default()
        };
        let formats = Formats {
            unrecorded: Unrecorded::Refuse,
        };
        Self {
            name: "strict".to_owned(),
            rules: Rules {
                formats,
                reach,
                ..Rules::default()
            },
        }
    }

    /// QEMU's rules where these differ from libvirt's: stamps mean nothing to it.
    pub fn qemu() -> Self {
        let mut policy = Self::libvirt();
        policy.rules.bases.changed = ChangedBase::Ignore;
        policy
    }

    /// The same rules, but a backing image may be another than its overlay was made on.
    #[must_use]
    pub fn accepting_changed_bases(mut self) -> Self {
        self.rules.bases.changed = ChangedBase::Accept;
        self
    }

    /// The rules that a text in the file form states. `name` is for messages.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let bad = |message: String| Error::new(ErrorKind::Conflict, message).with_path(name);
        let rules: Rules = toml::from_str(text).map_err(|error| {
            bad(format!(
                "the policy file is not valid: {}",
                error.to_string().trim_end().replace('\n', " | ")
            ))
        })?;
        let folders = rules
            .trust
            .roots
            .iter()
            .chain(rules.reach.folders.iter().flatten());
        for folder in folders {
            let plain = folder
                .components()
                .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
            if !folder.is_absolute() || !plain {
                return Err(bad(format!(
                    "'{}' is not an absolute path without '..'",
                    folder.display()
                )));
            }
        }
        for owner in &rules.trust.owners {
            if let Owner::Name(name) = owner
                && !matches!(nix::unistd::User::from_name(name), Ok(Some(_)))
            {
                return Err(bad(format!("there is no user '{name}'")));
            }
        }
        for digest in &rules.trust.digests {
            let known = digest.split_once(':').is_some_and(|(kind, hex)| {
                matches!(kind, "sha256" | "blake3")
                    && hex.len() == 64
                    && hex.bytes().all(|b| b.is_ascii_hexdigit())
            });
            if !known {
                return Err(bad(format!(
                    "'{digest}' is not sha256: or blake3: and 64 hexadecimal digits"
                )));
            }
        }
        if rules.reach.depth == 0 || rules.reach.depth > MAX_DEPTH {
            return Err(bad(format!("depth must be 1 to {MAX_DEPTH}")));
        }
        Ok(Self {
            name: name.to_owned(),
            rules,
        })
    }

    /// `libvirt`, `strict`, or the rules of a policy file.
    pub fn load(name: &str) -> Result<Self> {
        match name {
            "libvirt" => Ok(Self::libvirt()),
            "strict" => Ok(Self::strict()),
            path => {
                let io = |error: std::io::Error| {
                    let kind = match error.kind() {
                        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                        std::io::ErrorKind::PermissionDenied => ErrorKind::Denied,
                        _ => ErrorKind::Io,
                    };
                    Error::new(kind, "cannot read the policy file")
                        .with_path(path)
                        .with_hint("--policy takes 'libvirt', 'strict' or the name of a policy file")
                        .with_source(error)
                };
                let len = std::fs::metadata(path).map_err(io)?.len();
                if len > FILE_BYTES {
                    return Err(
                        Error::new(ErrorKind::TooLarge, "the policy file is larger than 1 MiB")
                            .with_path(path),
                    );
                }
                Self::parse(path, &std::fs::read_to_string(path).map_err(io)?)
            }
        }
    }

    /// Its name: `libvirt`, `strict`, or the file's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Most layers of a chain.
    pub fn depth(&self) -> usize {
        self.rules.reach.depth
    }

    /// What to do about a backing image whose format is not recorded and that is not trusted.
    pub fn unrecorded(&self) -> Unrecorded {
        self.rules.formats.unrecorded
    }

    /// What is done about a backing image that is not the one its overlay was made on.
    pub fn changed_base(&self) -> ChangedBase {
        self.rules.bases.changed
    }

    /// Whether a recorded string may be followed at all; says nothing of the place yet.
    pub fn check(&self, text: &str, source: &Source, role: Role) -> Result<()> {
        let reach = &self.rules.reach;
        if role == Role::DataFile && !reach.data_files {
            return Err(self.refused(&format!("data file '{text}' is not opened")));
        }
        if text.starts_with("json:") && !reach.json {
            return Err(self.refused(&format!("reference '{text}' is a json: reference")));
        }
        let scheme = match &source.location {
            Location::File(_) | Location::Block(_) | Location::Dir(_) => "file",
            Location::Network(network) => network.protocol.as_str(),
            Location::Nvme(_) => "nvme",
        };
        match &reach.schemes {
            Some(schemes) if !schemes.iter().any(|allowed| allowed == scheme) => {
                Err(self.refused(&format!("reference '{text}' uses {scheme}")))
            }
            _ => Ok(()),
        }
    }

    /// Whether a name lies in the folders that references may lead into, by its text alone.
    pub fn reaches(&self, path: &Path) -> bool {
        match &self.rules.reach.folders {
            None => true,
            Some(folders) => folders.iter().any(|folder| beneath(folder, path).is_some()),
        }
    }

    /// Opens a file that another one names, for reading and without locks.
    ///
    /// Where the policy names folders, the file must lie beneath one of them, and no link on the way may lead out.
    pub fn open(&self, path: &Path) -> Result<LocalFile> {
        let options = OpenOptions::new().lock(LockMode::None);
        let Some(folders) = &self.rules.reach.folders else {
            return Ok(LocalFile::open(path, &options)?);
        };
        let outside = || {
            self.refused(&format!(
                "'{}' leads outside the folders that references may lead into",
                path.display()
            ))
        };
        // Relative names are relative to the process; only whole names can be compared with the folders.
        let whole = std::path::absolute(path).map_err(|_| outside())?;
        let (folder, rest) = folders
            .iter()
            .find_map(|folder| Some((folder, beneath(folder, &whole)?)))
            .ok_or_else(outside)?;
        let system = |error: rustix::io::Errno| {
            Error::from(catena_storage::Error::from_io(error.into(), "open").with_path(path))
        };
        let dir = openat(
            CWD,
            folder,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(system)?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let handle = openat2(
            &dir,
            &rest,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            resolve,
        )
        .map_err(|error| match error {
            rustix::io::Errno::XDEV | rustix::io::Errno::LOOP => outside(),
            other => system(other),
        })?;
        Ok(LocalFile::open_handle(handle, path, &options)?)
    }

    /// Whether an image may be probed whatever it turns out to be.
    pub fn trusts(&self, path: &Path, file: &LocalFile) -> Result<bool> {
        let trust = &self.rules.trust;
        let real = || std::fs::canonicalize(path);
        if !trust.roots.is_empty()
            && real().is_ok_and(|real| trust.roots.iter().any(|root| real.starts_with(root)))
        {
            return Ok(true);
        }
        if !trust.owners.is_empty() {
            let owner = owner(file)?;
            let named = |name: &str| matches!(nix::unistd::User::from_name(name), Ok(Some(user)) if user.uid.as_raw() == owner);
            if trust.owners.iter().any(|rule| match rule {
                Owner::Id(id) => *id == owner,
                Owner::Name(name) => named(name),
            }) {
                return Ok(true);
            }
        }
        if trust.digests.is_empty() {
            return Ok(false);
        }
        let (sha256, blake3) = digests(file)?;
        Ok(trust.digests.iter().any(|digest| {
            digest.eq_ignore_ascii_case(&format!("sha256:{sha256}"))
                || digest.eq_ignore_ascii_case(&format!("blake3:{blake3}"))
        }))
    }

    fn refused(&self, what: &str) -> Error {
        Error::new(
            ErrorKind::Refused,
            format!("{what}, which the policy '{}' does not allow", self.name),
        )
        .with_hint("allow it in a policy file (docs/policy.md describes it) and give that with --policy")
    }
}

/// The rest of a path behind a folder that it lies in by its text; `None` where it does not or has `..` in it.
fn beneath(folder: &Path, path: &Path) -> Option<PathBuf> {
    let rest = path.strip_prefix(folder).ok()?;
    let plain = rest
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    (plain && rest.components().next().is_some()).then(|| rest.to_owned())
}

/// Who owns the open file.
fn owner(file: &LocalFile) -> Result<u32> {
    let stat = rustix::fs::fstat(file.opened()?).map_err(|error| {
        let path = file.path().unwrap_or(Path::new(""));
        Error::from(catena_storage::Error::from_io(error.into(), "ask the owner of").with_path(path))
    })?;
    Ok(stat.st_uid)
}

/// Both digests of a whole file, in hexadecimal.
fn digests(file: &LocalFile) -> Result<(String, String)> {
    use sha2::Digest;
    let mut sha256 = sha2::Sha256::new();
    let mut blake3 = blake3::Hasher::new();
    let mut piece = vec![0; DIGEST_PIECE];
    let mut offset = 0;
    loop {
        let read = file.read_at(&mut piece, offset)?;
        let bytes = piece.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        sha256.update(bytes);
        blake3.update(bytes);
        offset += read as u64;
    }
    let hex = sha256
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Ok((hex, blake3.finalize().to_hex().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_file_that_is_not_understood_is_refused() {
        for text in [
            "[formats]\nunrecorded = 'probe'",
            "[trust]\nroot = ['/srv']",
            "[trust]\nroots = ['srv']",
            "[trust]\nroots = ['/srv/../etc']",
            "[trust]\nowners = ['no such user']",
            "[trust]\ndigests = ['md5:00']",
            "[reach]\ndepth = 0",
            "[reach]\ndepth = 10001",
            "nonsense",
        ] {
            assert_eq!(
                Policy::parse("p.toml", text).unwrap_err().kind(),
                ErrorKind::Conflict,
                "{text}"
            );
        }
        assert_eq!(
            Policy::parse("p.toml", "").unwrap().rules,
            Policy::libvirt().rules
        );
    }

    #[test]
    fn folders_are_left_neither_by_dots_nor_by_links() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("in")).unwrap();
        std::fs::write(root.join("in/base"), "x").unwrap();
        std::fs::write(root.join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("base", root.join("in/link")).unwrap();
        std::os::unix::fs::symlink("../secret", root.join("in/escape")).unwrap();
        std::os::unix::fs::symlink(root.join("in/base"), root.join("in/whole")).unwrap();
        let policy = Policy::parse(
            "p",
            &format!("[reach]\nfolders = ['{}']", root.join("in").display()),
        )
        .unwrap();
        let open = |name: &str| {
            policy
                .open(&root.join(name))
                .map(|_| ())
                .map_err(|error| error.kind())
        };
        assert_eq!(open("in/base"), Ok(()));
        assert_eq!(open("in/./link"), Ok(()));
        assert_eq!(open("in/escape"), Err(ErrorKind::Refused));
        assert_eq!(open("in/whole"), Err(ErrorKind::Refused));
        assert_eq!(open("in/../secret"), Err(ErrorKind::Refused));
        assert_eq!(open("secret"), Err(ErrorKind::Refused));
        assert_eq!(open("in/missing"), Err(ErrorKind::NotFound));
    }

    #[test]
    fn trust_is_by_place_owner_or_digest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("base");
        std::fs::write(&path, "abc").unwrap();
        let file = LocalFile::open(&path, &OpenOptions::new().lock(LockMode::None)).unwrap();
        let trusts = |rules: &str| {
            let policy = Policy::parse("p", &format!("[trust]\n{rules}")).unwrap();
            policy.trusts(&path, &file).unwrap()
        };
        let owner = owner(&file).unwrap();
        assert!(!trusts(""));
        assert!(trusts(&format!(
            "roots = ['{}']",
            path.parent().unwrap().display()
        )));
        assert!(!trusts("roots = ['/nowhere']"));
        assert!(trusts(&format!("owners = [{owner}]")));
        assert!(!trusts(&format!("owners = [{}]", owner + 1)));
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(trusts(&format!("digests = ['sha256:{abc}']")));
        assert!(!trusts(&format!("digests = ['blake3:{abc}']")));
    }
}
