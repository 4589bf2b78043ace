package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
)

// serveBetween is the ceiling of live sessions: a go-between at addr that hands
// each client's identity on by XCLIENT, as Understudy must, and then passes on
// whatever comes, a command or a piece of a message, and the reply to it. It
// decides nothing, keeps nothing, and trusts both sides.
func serveBetween(ctx context.Context, addr, primary string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { ln.Close() })
	for {
		client, err := ln.Accept()
		if err != nil {
			return ctx.Err()
		}
		go func() {
			defer client.Close()
			server, err := net.Dial("tcp", primary)
			if err != nil {
				return
			}
			defer server.Close()
			_ = goBetween(client, server)
		}()
	}
}

func goBetween(client, server net.Conn) error {
	buf := make([]byte, 64<<10)
	greeting, err := introduced(client, server, buf)
	for answer := greeting; err == nil; {
		if _, err = client.Write(answer); err != nil {
			break
		}
		if err = passOn(client, server, buf, bytes.HasPrefix(answer, []byte("354"))); err == nil {
			answer, err = wholeReply(server, buf)
		}
	}
	return err
}

// introduced has the server take us for the client, and returns its greeting.
func introduced(client, server net.Conn, buf []byte) (greeting []byte, err error) {
	if greeting, err = wholeReply(server, buf); err != nil {
		return nil, err
	}
	host, _, _ := net.SplitHostPort(client.RemoteAddr().String())
	for _, command := range []string{"EHLO between.example.org", "XCLIENT NAME=[UNAVAILABLE] ADDR=" + host} {
		if _, err = fmt.Fprintf(server, "%s\r\n", command); err != nil {
			return nil, err
		}
		if greeting, err = wholeReply(server, buf); err != nil {
			return nil, err
		}
	}
	return greeting, nil
}

// passOn passes on what comes in one read, or a message up to its end.
func passOn(client, server net.Conn, buf []byte, message bool) error {
	var end []byte // of what was passed on
	for {
		n, err := client.Read(buf)
		if err == nil {
			_, err = server.Write(buf[:n])
		}
		end = append(end, buf[max(0, n-5):n]...)
		end = end[max(0, len(end)-5):]
		if err != nil || !message || bytes.HasSuffix(end, []byte("\r\n.\r\n")) {
			return err
		}
	}
}

// wholeReply reads up to the end of a reply.
func wholeReply(server net.Conn, buf []byte) ([]byte, error) {
	for n := 0; n < len(buf); {
		more, err := server.Read(buf[n:])
		if err != nil {
			return nil, err
		}
		n += more
		last := bytes.LastIndexByte(buf[:max(0, n-1)], '\n') + 1
		if buf[n-1] == '\n' && n-last > 3 && buf[last+3] == ' ' {
			return buf[:n], nil
		}
	}
	return nil, bytes.ErrTooLarge
}
