//! The network protocols and transports that libvirt and QEMU name in a reference, with libvirt's default ports.
//!
//! The table is libvirt 11.3's. QEMU 10 no longer has some of them ([`Protocol::qemu_speaks`]).

use std::fmt;

/// A network protocol by which a layer is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// Network block device.
    Nbd,
    /// Ceph RADOS block device.
    Rbd,
    /// Sheepdog, gone from QEMU since 6.1 and from libvirt's drivers since 10.
    Sheepdog,
    /// GlusterFS.
    Gluster,
    /// iSCSI.
    Iscsi,
    /// HTTP.
    Http,
    /// HTTP over TLS.
    Https,
    /// FTP.
    Ftp,
    /// FTP over TLS.
    Ftps,
    /// Trivial FTP, gone from QEMU.
    Tftp,
    /// SFTP.
    Ssh,
    /// Veritas HyperScale, gone from QEMU.
    Vxhs,
    /// NFS, spoken by QEMU itself.
    Nfs,
}

impl Protocol {
    /// Every protocol there is.
    pub const ALL: [Self; 13] = [
        Self::Nbd,
        Self::Rbd,
        Self::Sheepdog,
        Self::Gluster,
        Self::Iscsi,
        Self::Http,
        Self::Https,
        Self::Ftp,
        Self::Ftps,
        Self::Tftp,
        Self::Ssh,
        Self::Vxhs,
        Self::Nfs,
    ];

    /// The protocol of a name; names are lower case.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.as_str() == name)
    }

    /// The name, the same for libvirt and QEMU.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nbd => "nbd",
            Self::Rbd => "rbd",
            Self::Sheepdog => "sheepdog",
            Self::Gluster => "gluster",
            Self::Iscsi => "iscsi",
            Self::Http => "http",
            Self::Https => "https",
            Self::Ftp => "ftp",
            Self::Ftps => "ftps",
            Self::Tftp => "tftp",
            Self::Ssh => "ssh",
            Self::Vxhs => "vxhs",
            Self::Nfs => "nfs",
        }
    }

    /// The TCP port libvirt fills in for a host that has none; `None` where it fills in nothing.
    pub fn default_port(self) -> Option<u16> {
        match self {
            Self::Nbd => Some(10809),
            Self::Sheepdog => Some(7000),
            Self::Gluster => Some(24007),
            Self::Iscsi => Some(3260),
            Self::Http => Some(80),
            Self::Https => Some(443),
            Self::Ftp => Some(21),
            Self::Ftps => Some(990),
            Self::Tftp => Some(69),
            Self::Ssh => Some(22),
            Self::Vxhs => Some(9999),
            Self::Rbd | Self::Nfs => None,
        }
    }

    /// Whether QEMU 10 still has a driver for it.
    pub fn qemu_speaks(self) -> bool {
        !matches!(self, Self::Sheepdog | Self::Tftp | Self::Vxhs)
    }

    /// Whether the query of a URI belongs to the name of the object.
    pub(super) fn keeps_query(self) -> bool {
        matches!(self, Self::Http | Self::Https)
    }

    /// Whether libvirt writes a recorded string for it as a URI.
    pub(super) fn written_as_uri(self) -> bool {
        matches!(
            self,
            Self::Nbd
                | Self::Http
                | Self::Https
                | Self::Ftp
                | Self::Ftps
                | Self::Tftp
                | Self::Iscsi
                | Self::Gluster
        )
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a host is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Transport {
    /// TCP, the default, which libvirt does not print.
    #[default]
    Tcp,
    /// A Unix socket.
    Unix,
    /// RDMA.
    Rdma,
    /// A passed file descriptor, which libvirt 11.3 has in its table for backups only.
    Fd,
}

impl Transport {
    /// The transport of a name in libvirt's table.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Tcp, Self::Unix, Self::Rdma, Self::Fd]
            .into_iter()
            .find(|transport| transport.as_str() == name)
    }

    /// libvirt's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
            Self::Rdma => "rdma",
            Self::Fd => "fd",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
