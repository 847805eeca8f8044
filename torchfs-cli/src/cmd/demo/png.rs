//! A minimal PNG writer (W3C PNG, third edition): 8-bit RGB, no filter, stored deflate blocks (RFC 1950, RFC 1951).
//!
//! Uncompressed on purpose: the images stand for data that does not compress, and cost no time to make.

/// Most bytes in a stored deflate block.
const BLOCK_BYTES_MAX: usize = 65_535;

/// An image of `width` times `height` pixels of three bytes each.
///
/// # Panics
/// If `pixels` is not that long.
pub fn encode(width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
    let row_bytes = width as usize * 3;
    assert_eq!(pixels.len(), row_bytes * height as usize, "{width} x {height} pixels of three bytes");
    let mut header = Vec::with_capacity(13);
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    // Bit depth 8, colour type RGB, then the only compression, the only filter method, and no interlacing.
    header.extend([8, 2, 0, 0, 0]);
    let rows = pixels.chunks(row_bytes).flat_map(|row| std::iter::once(&0).chain(row)).copied().collect::<Vec<u8>>();

    let mut image = b"\x89PNG\r\n\x1a\n".to_vec();
    chunk(&mut image, b"IHDR", &header);
    chunk(&mut image, b"IDAT", &zlib_stored(&rows));
    chunk(&mut image, b"IEND", &[]);
    image
}

fn chunk(image: &mut Vec<u8>, kind: &[u8; 4], content: &[u8]) {
    image.extend((content.len() as u32).to_be_bytes());
    let start = image.len();
    image.extend(kind);
    image.extend(content);
    let checksum = crc32(&image[start..]);
    image.extend(checksum.to_be_bytes());
}

fn zlib_stored(bytes: &[u8]) -> Vec<u8> {
    // Deflate with a 32 KiB window, no dictionary, fastest level.
    let mut stream = vec![0x78, 0x01];
    let mut blocks = bytes.chunks(BLOCK_BYTES_MAX).peekable();
    while let Some(block) = blocks.next() {
        let len = block.len() as u16;
        stream.push(u8::from(blocks.peek().is_none()));
        stream.extend(len.to_le_bytes());
        stream.extend((!len).to_le_bytes());
        stream.extend(block);
    }
    stream.extend(adler32(bytes).to_be_bytes());
    stream
}

/// CRC-32 of ISO 3309, as PNG's annex D has it.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0u32; 256];
        let mut byte = 0;
        while byte < 256 {
            let mut value = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
                bit += 1;
            }
            table[byte] = value;
            byte += 1;
        }
        table
    };
    !bytes.iter().fold(!0, |crc, &byte| TABLE[((crc ^ u32::from(byte)) & 0xff) as usize] ^ (crc >> 8))
}

fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    b << 16 | a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_match_their_published_values() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(adler32(b"Wikipedia"), 0x11e6_0398);
    }

    #[test]
    fn an_image_has_its_chunks_and_all_its_pixels() {
        let pixels: Vec<u8> = (0..200 * 150 * 3u32).map(|at| at as u8).collect();
        let image = encode(200, 150, &pixels);
        assert!(image.starts_with(b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\xc8\0\0\0\x96\x08\x02\0\0\0"));
        assert!(image.ends_with(b"\0\0\0\0IEND\xae\x42\x60\x82"));
        let overhead = 8 + 3 * 12 + 13 + 2 + 4 + 2 * 5 + 150;
        assert_eq!(image.len(), pixels.len() + overhead);
    }
}
