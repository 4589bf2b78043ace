package policysync

import (
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// maxFrame bounds a chunk on the wire: what doesn't compress grows a little.
const maxFrame = maxChunk + 1024

// codec compresses chunks. It is safe for concurrent use.
type codec struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

// newCodec makes a codec whose decoder never allocates more than one chunk's
// worth, whatever a frame claims.
func newCodec() (*codec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(64<<10), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("make compressor: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(maxChunk),
		zstd.WithDecoderMaxWindow(64<<10), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, fmt.Errorf("make decompressor: %w", err)
	}
	return &codec{enc, dec}, nil
}

func (c *codec) pack(chunk []byte) []byte {
	return c.enc.EncodeAll(chunk, make([]byte, 0, len(chunk)/2+256))
}

// unpack decompresses a frame that must hold exactly size octets.
func (c *codec) unpack(frame []byte, size int) ([]byte, error) {
	if size < 1 || size > maxChunk {
		return nil, fmt.Errorf("a chunk of %d octets is out of bounds", size)
	}
	if len(frame) > maxFrame {
		return nil, fmt.Errorf("a frame of %d octets is out of bounds", len(frame))
	}
	b, err := c.dec.DecodeAll(frame, make([]byte, 0, size))
	if err != nil {
		return nil, fmt.Errorf("decompress chunk: %w", err)
	}
	if len(b) != size {
		return nil, fmt.Errorf("decompress chunk: %d octets instead of %d", len(b), size)
	}
	return b, nil
}

func (c *codec) close() {
	c.dec.Close()
	_ = c.enc.Close() // it wrote to nothing
}
