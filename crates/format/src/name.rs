//! The names of formats, in QEMU's words and in libvirt's, which differ.

use std::fmt;

/// An image format.
///
/// Displayed in QEMU's words, which are what `qemu-img -f` takes and what an overlay records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Format {
    /// No format at all: guest offset is file offset.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
    /// The first QEMU copy-on-write format.
    Qcow,
    /// QEMU enhanced disk.
    Qed,
    /// VMware disk, sparse or with a text descriptor.
    Vmdk,
    /// Virtual PC disk (VHD): fixed, dynamic or differencing.
    Vpc,
    /// Hyper-V disk.
    Vhdx,
    /// VirtualBox disk.
    Vdi,
    /// Parallels disk, which Virtuozzo and libvirt call ploop.
    Parallels,
    /// A LUKS container around raw data.
    Luks,
    /// An ISO 9660 or UDF file system: raw data with a name.
    Iso,
    /// Apple disk image.
    Dmg,
    /// Bochs growing disk.
    Bochs,
    /// Compressed loop image.
    Cloop,
    /// User-mode Linux copy-on-write, which neither QEMU nor libvirt runs any more.
    Cow,
    /// A folder shown as a FAT disk.
    Fat,
    /// A folder.
    Dir,
}

impl Format {
    /// Every format there is.
    pub const ALL: [Self; 17] = [
        Self::Raw,
        Self::Qcow2,
        Self::Qcow,
        Self::Qed,
        Self::Vmdk,
        Self::Vpc,
        Self::Vhdx,
        Self::Vdi,
        Self::Parallels,
        Self::Luks,
        Self::Iso,
        Self::Dmg,
        Self::Bochs,
        Self::Cloop,
        Self::Cow,
        Self::Fat,
        Self::Dir,
    ];

    /// QEMU's name of the format driver, `None` where QEMU has none by that name.
    pub fn qemu(self) -> Option<&'static str> {
        match self {
            Self::Fat => Some("vvfat"),
            Self::Iso | Self::Cow | Self::Dir => None,
            other => Some(other.as_str()),
        }
    }

    /// libvirt's name. A LUKS container is `raw` with encryption there, VHDX is `vhd`, Parallels is `ploop`.
    pub fn libvirt(self) -> &'static str {
        match self {
            Self::Vhdx => "vhd",
            Self::Parallels => "ploop",
            Self::Luks => "raw",
            other => other.as_str(),
        }
    }

    /// The format QEMU would use for a recorded or given name.
    pub fn from_qemu(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.qemu() == Some(name))
    }

    /// The format libvirt's own table has under a name.
    pub fn from_libvirt(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|format| *format != Self::Luks && format.libvirt() == name)
    }

    /// The format an overlay's recorded format word means.
    ///
    /// QEMU's names win, then libvirt's, which libvirt itself used to record (`vhd`, `ploop`). The name of a
    /// protocol driver (`file`, `host_device`, `nbd`, …) means that the bytes are used as they are: raw.
    /// Anything else means nothing: `None`.
    pub fn from_recorded(name: &str) -> Option<Self> {
        Self::from_qemu(name)
            .or_else(|| Self::from_libvirt(name))
            .or_else(|| PROTOCOL_DRIVERS.contains(&name).then_some(Self::Raw))
    }

    /// Whether the format can record a backing image at all.
    pub fn can_have_backing(self) -> bool {
        matches!(
            self,
            Self::Qcow2
                | Self::Qcow
                | Self::Qed
                | Self::Vmdk
                | Self::Vpc
                | Self::Vhdx
                | Self::Vdi
                | Self::Cow
        ) || self == Self::Parallels
    }

    /// The name used here: QEMU's where it has one.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Qcow => "qcow",
            Self::Qed => "qed",
            Self::Vmdk => "vmdk",
            Self::Vpc => "vpc",
            Self::Vhdx => "vhdx",
            Self::Vdi => "vdi",
            Self::Parallels => "parallels",
            Self::Luks => "luks",
            Self::Iso => "iso",
            Self::Dmg => "dmg",
            Self::Bochs => "bochs",
            Self::Cloop => "cloop",
            Self::Cow => "cow",
            Self::Fat => "fat",
            Self::Dir => "dir",
        }
    }
}

/// QEMU's protocol drivers: recorded as a backing format, they mean that no format driver is put on top.
pub const PROTOCOL_DRIVERS: [&str; 17] = [
    "file",
    "host_device",
    "host_cdrom",
    "nbd",
    "rbd",
    "gluster",
    "iscsi",
    "http",
    "https",
    "ftp",
    "ftps",
    "ssh",
    "nfs",
    "nvme",
    "sheepdog",
    "vxhs",
    "io_uring",
];

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_words_follow_qemu_then_libvirt_then_protocols() {
        for (word, format) in [
            ("raw", Some(Format::Raw)),
            ("parallels", Some(Format::Parallels)),
            ("ploop", Some(Format::Parallels)),
            ("vhdx", Some(Format::Vhdx)),
            ("vhd", Some(Format::Vhdx)),
            ("vpc", Some(Format::Vpc)),
            ("luks", Some(Format::Luks)),
            ("host_device", Some(Format::Raw)),
            ("nbd", Some(Format::Raw)),
            ("qcow3", None),
            ("none", None),
            ("", None),
        ] {
            assert_eq!(Format::from_recorded(word), format, "{word}");
        }
    }

    #[test]
    fn every_name_is_found_again() {
        for format in Format::ALL {
            if let Some(name) = format.qemu() {
                assert_eq!(Format::from_qemu(name), Some(format));
            }
            if format != Format::Luks {
                assert_eq!(Format::from_libvirt(format.libvirt()), Some(format));
            }
        }
    }
}
