//! LUKS headers, versions 1 and 2: recognised and described, not opened.

/// What a LUKS header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LuksHeader {
    /// 1 or 2.
    pub version: u16,
    /// The cipher in the header's words, such as `aes-xts-plain64`.
    pub cipher: Option<String>,
    /// The hash in the header's words.
    pub hash: Option<String>,
    /// The container's UUID as printed text.
    pub uuid: Option<String>,
    /// Byte offset of the encrypted payload from the start of the header.
    pub payload_offset: Option<u64>,
    /// How many key slots are in use.
    pub active_key_slots: Option<u32>,
}

impl LuksHeader {
    /// Placeholder
    pub fn parse(_bytes: &dyn crate::Bytes, _offset: u64) -> crate::Result<Self> {
        Err(crate::Error::unsupported("luks"))
    }
}
