package relay

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/understudy-mx/understudy/internal/envelope"
)

func TestReadReply(t *testing.T) {
	long := strings.Repeat("x", 600)
	for _, test := range []struct {
		name, in string
		want     envelope.Reply
		err      error
	}{
		{"one line", "250 2.1.0 Ok\r\n", envelope.Reply{Code: 250, Enhanced: "2.1.0", Text: "Ok"}, nil},
		{"no text", "250\r\n", envelope.Reply{Code: 250}, nil},
		{"empty text", "250 \r\n", envelope.Reply{Code: 250}, nil},
		{"no status code", "250 Ok then\r\n", envelope.Reply{Code: 250, Text: "Ok then"}, nil},
		{"status code only", "550 5.1.1\r\n", envelope.Reply{Code: 550, Enhanced: "5.1.1"}, nil},
		{"status of another class", "550 2.1.1 x\r\n", envelope.Reply{Code: 550, Text: "2.1.1 x"}, nil},
		{"no status after all", "550 5.1.1111 x\r\n", envelope.Reply{Code: 550, Text: "5.1.1111 x"}, nil},
		{"address", "550 5.1.2.3 x\r\n", envelope.Reply{Code: 550, Text: "5.1.2.3 x"}, nil},
		{"bare LF", "250 Ok\n", envelope.Reply{Code: 250, Text: "Ok"}, nil},
		{"lines", "554-5.7.1 a\r\n554-5.7.1 b\r\n554 5.7.1 c\r\n", envelope.Reply{Code: 554, Enhanced: "5.7.1", Text: "a\nb\nc"}, nil},
		{"control and 8-bit", "250 a\tb\x00c\x1b[1md\xffe\u00e9\x7f\r\r\n", envelope.Reply{Code: 250, Text: "a b?c?[1md?e???"}, nil},
		{"cut", "250 " + long + "\r\n", envelope.Reply{Code: 250, Text: long[:256]}, nil},
		{"cut behind lines", "250-" + long + "\r\n250 x\r\n", envelope.Reply{Code: 250, Text: long[:256]}, nil},
		{"longest line", "250 " + strings.Repeat("x", maxReplyLine-6) + "\r\n", envelope.Reply{Code: 250, Text: long[:256]}, nil},
		{"CR at the bound", "250 " + strings.Repeat("x", maxReplyLine-5) + "\r\n", envelope.Reply{Code: 250, Text: long[:256]}, nil},
		{"long line", "250 " + strings.Repeat("x", 5*maxReplyLine) + "\r\n", envelope.Reply{Code: 250, Text: long[:256]}, nil},
		{"long lines", "554-5.7.1 " + strings.Repeat("x", 5*maxReplyLine) + "\n554 5.7.1 b\r\n", envelope.Reply{Code: 554, Enhanced: "5.7.1", Text: long[:256]}, nil},
		{"end in a long line", "250 " + strings.Repeat("x", 2*maxReplyLine), envelope.Reply{}, io.ErrUnexpectedEOF},
		{"longest", strings.Repeat("250-\r\n", maxReply/6-1) + "250 \r\n", envelope.Reply{Code: 250, Text: strings.Repeat("\n", maxReplyText)}, nil},
		{"too many lines", strings.Repeat("250-\r\n", maxReply/6) + "250 \r\n", envelope.Reply{}, errReplyLong},
		{"endless line", "250 " + strings.Repeat("x", maxReply), envelope.Reply{}, errReplyLong},
		{"end", "", envelope.Reply{}, io.EOF},
		{"end in a line", "25", envelope.Reply{}, io.ErrUnexpectedEOF},
		{"end behind a line", "250-x\r\n", envelope.Reply{}, io.ErrUnexpectedEOF},
		{"codes differ", "250-x\r\n251 x\r\n", envelope.Reply{}, errReplySyntax},
		{"no code", "Hi there\r\n", envelope.Reply{}, errReplySyntax},
		{"1yz", "150 x\r\n", envelope.Reply{}, errReplySyntax},
		{"6yz", "600 x\r\n", envelope.Reply{}, errReplySyntax},
		{"short code", "25\r\n", envelope.Reply{}, errReplySyntax},
		{"no separator", "250x\r\n", envelope.Reply{}, errReplySyntax},
		{"sign", "+25 x\r\n", envelope.Reply{}, errReplySyntax},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := readReply(newReplyReader(strings.NewReader(test.in)), nil)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if !errors.Is(err, test.err) {
				t.Errorf("error %v, want %v", err, test.err)
			}
		})
	}
}

func FuzzReadReply(f *testing.F) {
	for _, s := range []string{"250 2.1.0 Ok\r\n", "554-5.7.1 a\r\n554 5.7.1 b\r\n", "250\n", "250-\r\n", "250 \x00\xff\r\n", "5", ""} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		br := newReplyReader(strings.NewReader(string(in)))
		for {
			r, err := readReply(br, nil)
			if err != nil {
				if !r.Zero() || r.Text != "" {
					t.Errorf("%+v with %v", r, err)
				}
				return
			}
			if r.Code < 200 || r.Code > 599 || len(r.Text) > maxReplyText || len(r.Enhanced) > 9 {
				t.Errorf("%+v", r)
			}
			if s := strings.ReplaceAll(r.Text, "\n", "") + r.Enhanced; strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' }) {
				t.Errorf("not clean: %q", s)
			}
		}
	})
}

// FuzzContent sends any content in any pieces: a server that undoes
// dot-stuffing gets what was sent, whatever ends a line to it.
func FuzzContent(f *testing.F) {
	for _, s := range []string{"", ".", ".\r\n", "\r\n.\r\n", "a\r\n..\r\n", "\n.\n", "\r.\r", "x\r\n.", "\r", "\n", "a\r\n\r\n.b\r\n"} {
		f.Add([]byte(s), byte(1))
		f.Add([]byte(s), byte(3))
	}
	f.Fuzz(func(t *testing.T, in []byte, piece byte) {
		var sent strings.Builder
		w := bufio.NewWriterSize(&sent, 16)
		if err := writeContent(w, strings.NewReader(string(in)), make([]byte, int(piece)+1)); err != nil {
			t.Fatal(err)
		}
		w.Flush()
		s := sent.String()
		if strings.Count("\r\n"+s, "\r\n.\r\n") != 1 || !strings.HasSuffix("\r\n"+s, "\r\n.\r\n") {
			t.Fatalf("%q: the data ends elsewhere than at its end: %q", in, s)
		}
		for _, end := range []string{"\n.\n", "\n.\r\n", "\n.\r"} {
			if at := strings.Index("\n"+s, end); at >= 0 && at < len(s)-3 {
				t.Fatalf("%q: %q within %q", in, end, s)
			}
		}
		got := strings.TrimPrefix(strings.ReplaceAll("\n"+strings.TrimSuffix(s, ".\r\n"), "\n.", "\n"), "\n")
		want := string(in)
		if want != "" && !strings.HasSuffix(want, "\r\n") {
			want += "\r\n"
		}
		if got != want {
			t.Fatalf("%q arrived as %q", want, got)
		}
	})
}

// TestStuffedInPieces: it doesn't matter how content is cut.
func TestStuffedInPieces(t *testing.T) {
	const content, want = ".a\r\n.b\r\n..\n.c\r\n\r\n", "..a\r\n..b\r\n...\n..c\r\n\r\n.\r\n"
	for n := 1; n <= len(content); n++ {
		var out bytes.Buffer
		d := stuffer{w: bufio.NewWriter(&out), last: [2]byte{'\r', '\n'}}
		for piece := range slices.Chunk([]byte(content), n) {
			if err := d.write(piece); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(d.write(nil), d.end(), d.w.Flush()); err != nil || out.String() != want {
			t.Errorf("in pieces of %d: %q, %v", n, out.String(), err)
		}
	}
}

func TestCutStatus(t *testing.T) {
	for text, want := range map[string]string{
		"5.1.1 no":              "5.1.1",
		"5.123.123 the longest": "5.123.123",
		"5.1234.12 no":          "",
		"5.123.1234 no":         "",
		"4.1.1 of another kind": "",
		"5.1 no":                "",
		"":                      "",
	} {
		status, rest := cutStatus(text, 5)
		if status != want || status == "" && rest != text {
			t.Errorf("%q: status %q, rest %q", text, status, rest)
		}
	}
}
