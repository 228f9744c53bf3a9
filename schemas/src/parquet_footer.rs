//! What must hold of a Parquet footer before the library reads it: it recurses, and allocates, by what the schema and the page
//! indexes claim, and neither a full stack nor a refused allocation can be caught.
//!
//! In: bytes of a footer or of an offset index. Out: whether they may be read. Never: a judgement on anything else; what is no
//! Thrift here is left to the library to name.
//! Source: Thrift's compact protocol, <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>.

/// Groups within groups of a schema; Hugging Face's deepest have five.
const MAX_DEPTH: usize = 64;

// Types of fields, and of the elements of lists.
const I32: u8 = 5;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// Field of `FileMetaData` that is the schema, and field of its elements that counts their children.
const SCHEMA: i64 = 2;
const NUM_CHILDREN: i64 = 5;

/// Checks the schema of `footer`, without the length and magic behind it.
///
/// # Errors
/// What it claims, and what there is.
pub fn check_footer(footer: &[u8]) -> Result<(), String> {
    let mut thrift = Thrift { bytes: footer };
    let mut schemas = Vec::new();
    // What could be read before the bytes are no Thrift any more is checked all the same.
    let _ = thrift.fields(MAX_DEPTH, &mut |thrift, id, field_type| {
        if (id, field_type) != (SCHEMA, LIST) {
            return thrift.skip(field_type, MAX_DEPTH);
        }
        let (element_type, n_elements) = thrift.list()?;
        let mut children = Vec::new();
        let mut read = || -> Option<()> {
            for _ in 0..n_elements {
                let n = if element_type == STRUCT { thrift.num_children()? } else { 0 };
                children.push(n);
            }
            Some(())
        };
        let read = read();
        schemas.push((n_elements, children));
        read
    });
    schemas.iter().try_for_each(|(n_elements, children)| check_tree(*n_elements, children))
}

/// Checks that `index`, the bytes of an offset index, has room for as many pages as it claims.
///
/// # Errors
/// What it claims, and what there is.
pub fn check_offset_index(index: &[u8]) -> Result<(), String> {
    let mut thrift = Thrift { bytes: index };
    let _field = thrift.byte();
    match thrift.list() {
        Some((_, n_pages)) if n_pages > thrift.bytes.len() as u64 => {
            Err(format!("an offset index of {} bytes claims {n_pages} pages", index.len()))
        }
        _ => Ok(()),
    }
}

/// Whether a tree of `n_elements`, each with so many children, depth first, can be one.
fn check_tree(n_elements: u64, children: &[i64]) -> Result<(), String> {
    // Children that are still to come, by group.
    let mut open: Vec<u64> = Vec::new();
    for (at, &n_children) in children.iter().enumerate() {
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        let left = n_elements - at as u64 - 1;
        match u64::try_from(n_children) {
            Ok(0) => {}
            Ok(n) if n <= left => open.push(n),
            Ok(_) | Err(_) => {
                return Err(format!("a group of its schema claims {n_children} children, {left} elements follow"));
            }
        }
        if open.len() > MAX_DEPTH {
            return Err(format!("its schema has more than {MAX_DEPTH} groups within each other"));
        }
        while open.last() == Some(&0) {
            open.pop();
        }
    }
    Ok(())
}

struct Thrift<'a> {
    bytes: &'a [u8],
}

/// Takes a field's id and type, and reads its value.
type TakeField<'f, 'a> = dyn FnMut(&mut Thrift<'a>, i64, u8) -> Option<()> + 'f;

impl<'a> Thrift<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(first)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = self.byte()?;
            // As the library: bits beyond the 64th wrap.
            value |= u64::from(byte & 0x7f).wrapping_shl(shift);
            if byte & 0x80 == 0 {
                break;
            }
        }
        Some(value)
    }

    fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn advance(&mut self, n: u64) -> Option<()> {
        self.bytes = self.bytes.get(usize::try_from(n).ok()?..)?;
        Some(())
    }

    /// Type and number of the elements of a list.
    fn list(&mut self) -> Option<(u8, u64)> {
        let head = self.byte()?;
        let n = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        Some((head & 15, n))
    }

    /// Hands every field of a struct to `take`.
    fn fields(&mut self, depth: usize, take: &mut TakeField<'_, 'a>) -> Option<()> {
        depth.checked_sub(1)?;
        let mut id = 0;
        loop {
            let head = self.byte()?;
            if head & 15 == 0 {
                return Some(());
            }
            id = if head >> 4 == 0 { self.zigzag()? } else { id + i64::from(head >> 4) };
            take(self, id, head & 15)?;
        }
    }

    /// Children of an element of a schema, 0 if it has none.
    fn num_children(&mut self) -> Option<i64> {
        let mut n_children = 0;
        self.fields(MAX_DEPTH, &mut |thrift, id, field_type| {
            if (id, field_type) != (NUM_CHILDREN, I32) {
                return thrift.skip(field_type, MAX_DEPTH);
            }
            n_children = i64::from(thrift.zigzag()? as i32);
            Some(())
        })?;
        Some(n_children)
    }

    fn skip(&mut self, field_type: u8, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match field_type {
            // A boolean of a struct is its type.
            1 | 2 => Some(()),
            3 => self.advance(1),
            4..=6 => self.varint().map(|_| ()),
            7 => self.advance(8),
            8 => {
                let n_bytes = self.varint()?;
                self.advance(n_bytes)
            }
            LIST | 10 => {
                let (element_type, n) = self.list()?;
                (0..n).try_for_each(|_| self.skip_element(element_type, depth))
            }
            11 => {
                let n = self.varint()?;
                let types = if n == 0 { 0 } else { self.byte()? };
                (0..n).try_for_each(|_| {
                    self.skip_element(types >> 4, depth)?;
                    self.skip_element(types & 15, depth)
                })
            }
            STRUCT => self.fields(depth, &mut |thrift, _, field_type| thrift.skip(field_type, depth)),
            13 => self.advance(16),
            _ => None,
        }
    }

    fn skip_element(&mut self, element_type: u8, depth: usize) -> Option<()> {
        // A boolean of a list is a byte.
        if matches!(element_type, 1 | 2) { self.advance(1) } else { self.skip(element_type, depth) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varint(mut n: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while n > 0x7f {
            bytes.push(n as u8 | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
        bytes
    }

    /// A footer whose schema's elements have so many children.
    fn footer(children: &[i32]) -> Vec<u8> {
        // Version 1; the list of the schema.
        let mut footer = vec![0x15, 2, 0x19, 0xfc];
        footer.extend(varint(children.len() as u64));
        for &n in children {
            // Required, named `a`; then the number of children.
            footer.extend([0x35, 0, 0x18, 1, b'a', 0x15]);
            footer.extend(varint(u64::from(((n << 1) ^ (n >> 31)) as u32)));
            footer.push(0);
        }
        footer.push(0);
        footer
    }

    #[test]
    fn a_schema_that_claims_more_than_it_has_or_nests_too_deep_is_not_read() {
        let deep = |n: usize| -> Vec<i32> { (0..n).map(|at| i32::from(at + 1 < n)).collect() };
        let cases: [(&[i32], &str); 7] = [
            (&[2, 0, 0], ""),
            (&[2, 2, 0, 0, 1, 0], ""),
            (&deep(60), ""),
            (&[1 << 30, 0], "claims 1073741824 children, 1 elements follow"),
            (&[2, 0, 5, 0], "claims 5 children, 1 elements follow"),
            (&[-1, 0], "claims -1 children"),
            (&deep(100_000), "more than 64 groups"),
        ];
        for (children, wanted) in cases {
            let found = check_footer(&footer(children)).err().unwrap_or_default();
            assert!(found.contains(wanted) && found.is_empty() == wanted.is_empty(), "{found}, wanted {wanted}");
            // What stands before the end of the bytes is checked too.
            let cut = footer(children);
            assert_eq!(check_footer(&cut[..cut.len() - 1]).is_err(), !wanted.is_empty());
        }
    }

    #[test]
    fn an_offset_index_that_claims_more_pages_than_bytes_is_not_read() {
        assert!(check_offset_index(&[0x19, 0x1c, 0x16, 8, 0x15, 8, 0x16, 0, 0, 0]).is_ok());
        assert!(check_offset_index(&[0x19, 0xfc, 0xff, 0xff, 0xff, 0xff, 7, 0]).is_err());
    }
}
