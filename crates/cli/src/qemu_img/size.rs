//! Sizes as qemu-img reads and writes them.

/// Why a size is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeError {
    /// It is not a number, or not one of whole bytes.
    Invalid,
    /// It is larger than a 64-bit number.
    OutOfRange,
}

/// A size: decimal digits, perhaps with a fraction, perhaps with a unit; or hexadecimal digits without either. Bytes unless a unit is given.
///
/// A negative number wraps around, as with C's `strtoull`.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    parse_with(text, 0)
}

/// The same where a number without a unit counts `1 << default_shift` bytes.
pub fn parse_with(text: &str, default_shift: u32) -> Result<u64, SizeError> {
    let text = text.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    let (negative, digits) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"))
        && !hex.is_empty()
    {
        return hexadecimal(hex, negative, default_shift);
    }
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let (whole, mut rest) = digits.split_at_checked(end).unwrap_or_default();
    let mut fraction = None;
    if let Some(behind) = rest.strip_prefix('.') {
        let end = behind.find(|c: char| !c.is_ascii_digit()).unwrap_or(behind.len());
        let (digits, behind) = behind.split_at_checked(end).unwrap_or_default();
        if digits.is_empty() && whole.is_empty() {
            return Err(SizeError::Invalid);
        }
        fraction = Some(digits);
        rest = behind;
    } else if whole.is_empty() {
        return Err(SizeError::Invalid);
    }
    let shift = match rest {
        "" => default_shift,
        unit => unit_shift(unit).ok_or(SizeError::Invalid)?,
    };
    let mut value: u64 = 0;
    for digit in whole.bytes() {
        value = value
            .checked_mul(10)
            .and_then(|value| value.checked_add(u64::from(digit - b'0')))
            .ok_or(SizeError::OutOfRange)?;
    }
    let fraction = fraction.map_or(0.0, |digits| {
        format!("0.{digits}0").parse::<f64>().unwrap_or_default()
    });
    if fraction > 0.0 && shift == 0 {
        return Err(SizeError::Invalid);
    }
    // A fraction of a unit is cut to whole bytes.
    let scale = (1_u64 << shift) as f64;
    let part = (fraction * scale + 0.5) as u64;
    let value = value
        .checked_mul(1 << shift)
        .and_then(|value| value.checked_add(part))
        .ok_or(SizeError::OutOfRange)?;
    if negative { negate(value) } else { Ok(value) }
}

fn negate(value: u64) -> Result<u64, SizeError> {
    match value {
        0 => Ok(0),
        _ => Err(SizeError::OutOfRange),
    }
}

fn hexadecimal(digits: &str, negative: bool, shift: u32) -> Result<u64, SizeError> {
    if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(SizeError::Invalid);
    }
    let value = u64::from_str_radix(digits, 16).map_err(|_| SizeError::OutOfRange)?;
    let value = value.checked_mul(1 << shift).ok_or(SizeError::OutOfRange)?;
    if negative { negate(value) } else { Ok(value) }
}

fn unit_shift(unit: &str) -> Option<u32> {
    match unit {
        "b" | "B" => Some(0),
        "k" | "K" => Some(10),
        "m" | "M" => Some(20),
        "g" | "G" => Some(30),
        "t" | "T" => Some(40),
        "p" | "P" => Some(50),
        "e" | "E" => Some(60),
        _ => None,
    }
}

/// A size that must be within bounds, or the sentence for what is wrong with it. `name` is what it is a size of.
pub fn argument(name: &str, text: &str, min: u64, max: u64) -> Result<u64, String> {
    let outside = || match max {
        u64::MAX => format!("Invalid {name} specified. Must be at least {min}."),
        _ => format!("Invalid {name} specified. Must be between {min} and {max}."),
    };
    match parse(text) {
        Ok(value) if (min..=max).contains(&value) => Ok(value),
        Ok(_) | Err(SizeError::OutOfRange) => Err(outside()),
        Err(SizeError::Invalid) => Err(format!("Invalid {name} specified: '{text}'.")),
    }
}

/// The largest size that is a file offset.
pub const MAX: u64 = i64::MAX as u64;

/// Three significant digits and a unit: `1.5 GiB`.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    // From 1000 of a unit on, the next larger one is taken.
    let mut power = 0_i32;
    let mut scaled = bytes as f64 / (1000.0 / 1024.0);
    while scaled >= 1024.0 && power < 6 {
        scaled /= 1024.0;
        power += 1;
    }
    let value = bytes as f64 / 1024_f64.powi(power);
    let unit = usize::try_from(power)
        .ok()
        .and_then(|power| UNITS.get(power))
        .copied()
        .unwrap_or_default();
    format!("{} {unit}B", three_digits(value))
}

/// A number as C's `%0.3g` prints it, for numbers that need no exponent.
fn three_digits(value: f64) -> String {
    if value >= 999.5 {
        // `%g` goes over to exponents here.
        let text = format!("{value:.2e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        return format!("{}e+{exponent:0>2}", trim(mantissa));
    }
    let digits = match value {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.9995 => 2,
        _ => 3,
    };
    trim(&format!("{value:.digits$}")).to_owned()
}

fn trim(text: &str) -> &str {
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.'),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_qemu_reads_them() {
        assert_eq!(parse("1.5k"), Ok(1536));
        assert_eq!(parse(" +1"), Ok(1));
        assert_eq!(parse(".5k"), Ok(512));
        assert_eq!(parse("1.b"), Ok(1));
        assert_eq!(parse("0x10"), Ok(16));
        for bad in ["", "abc", "1.5", "1kk", "1 ", "0x10k", "1e3", "0.1", "."] {
            assert_eq!(parse(bad), Err(SizeError::Invalid), "{bad}");
        }
        for huge in ["16E", "18446744073709551616", "-1"] {
            assert_eq!(parse(huge), Err(SizeError::OutOfRange), "{huge}");
        }
    }

    #[test]
    fn sizes_have_three_digits() {
        assert_eq!(human(0), "0 B");
        assert_eq!(human(512), "512 B");
        assert_eq!(human(999), "999 B");
        assert_eq!(human(1000), "0.977 KiB");
        assert_eq!(human(10 << 20), "10 MiB");
        assert_eq!(human(1_049_088), "1 MiB");
        assert_eq!(human(2_297_856), "2.19 MiB");
        assert_eq!(human(503_808), "492 KiB");
        assert_eq!(human(1023 << 20), "0.999 GiB");
    }
}
