package asked

import (
	"bufio"
	"io"
	"strings"
)

// ReadLog calls fn for each recipient to whom a log of Postfix or Exim says that mail
// was delivered.
func ReadLog(r io.Reader, fn func(address string)) error {
	in := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := in.ReadSlice('\n')
		if len(line) > 0 && err != bufio.ErrBufferFull {
			for _, a := range delivered(string(line)) {
				fn(a)
			}
		}
		for err == bufio.ErrBufferFull { // a line that long is none of theirs
			_, err = in.ReadSlice('\n')
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// delivered reads a line: Postfix's "to=<a@b>, orig_to=<c@d>, … status=sent", or
// Exim's "=> local <a@b> R=… T=…".
func delivered(line string) (found []string) {
	if strings.Contains(line, ", status=sent (") {
		for _, key := range []string{" to=<", " orig_to=<"} {
			if _, rest, ok := strings.Cut(line, key); ok {
				if address, _, ok := strings.Cut(rest, ">, "); ok {
					found = append(found, address)
				}
			}
		}
		return found
	}
	for _, arrow := range []string{" => ", " -> "} {
		_, rest, ok := strings.Cut(line, arrow)
		if !ok || !strings.Contains(rest, " R=") {
			continue
		}
		to, _, _ := strings.Cut(rest, " R=")
		words := strings.Fields(to)
		for _, w := range words[:min(len(words), 2)] {
			if w = strings.Trim(w, "<>"); strings.Contains(w, "@") {
				found = append(found, w)
			}
		}
	}
	return found
}
