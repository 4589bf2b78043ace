// Command oci writes a container image of Understudy: a tar in OCI's image
// layout, with one image for each architecture and one layer in each. In the layer
// are the program, the CA certificates, its licence and its user; no shell, no
// libraries. From the same files come the same octets. docs/CONTAINER.md says how
// to use it.
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	name = "localhost/understudy:latest"
	uid  = 10025 // a number, so that an orchestrator sees that it isn't root
	user = "10025:10025"

	indexType    = "application/vnd.oci.image.index.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

type object = map[string]any

func main() {
	log.SetFlags(0)
	out := flag.String("o", "", "the `file` to write")
	version := flag.String("version", "", "of Understudy")
	revision := flag.String("revision", "", "the commit that it is built from")
	epoch := flag.String("epoch", "0", "that commit's Unix time")
	certs := flag.String("ca", "/etc/ssl/certs/ca-certificates.crt", "the CA certificates")
	licence := flag.String("licence", "systemd/deb/copyright", "the licence")
	flag.Parse()
	seconds, err := strconv.ParseInt(*epoch, 10, 64)
	if err != nil || *out == "" || flag.NArg() == 0 {
		log.Fatal("usage: oci -o FILE -version V -revision COMMIT -epoch SECONDS ARCH=PROGRAM ...")
	}
	im := &image{version: *version, revision: *revision, time: time.Unix(seconds, 0).UTC(), certs: *certs, licence: *licence}
	if err := im.write(*out, flag.Args()); err != nil {
		log.Fatalf("oci: %v", err)
	}
}

// image collects what goes into the layout.
type image struct {
	version, revision string
	time              time.Time
	certs, licence    string
	blobs             archive
}

func (im *image) write(path string, programs []string) error {
	im.blobs.begin(im.time)
	im.blobs.dir("blobs", 0o755, 0)
	im.blobs.dir("blobs/sha256", 0o755, 0)
	var manifests []object
	for _, p := range programs {
		arch, program, _ := strings.Cut(p, "=")
		m, err := im.manifest(arch, program)
		if err != nil {
			return err
		}
		m["platform"] = object{"architecture": arch, "os": "linux"}
		manifests = append(manifests, m)
	}
	index := im.blob(indexType, object{"schemaVersion": 2, "mediaType": indexType, "manifests": manifests, "annotations": im.labels()})
	index["annotations"] = object{"org.opencontainers.image.ref.name": name, "io.containerd.image.name": name}
	im.blobs.file("index.json", encode(object{"schemaVersion": 2, "mediaType": indexType, "manifests": []object{index}}), 0o644)
	im.blobs.file("oci-layout", encode(object{"imageLayoutVersion": "1.0.0"}), 0o644)
	all, err := im.blobs.end()
	if err != nil {
		return err
	}
	return os.WriteFile(path, all, 0o644)
}

// manifest stores the image of one architecture and returns its descriptor.
func (im *image) manifest(arch, program string) (object, error) {
	layer, err := im.layer(program)
	if err != nil {
		return nil, err
	}
	var packed bytes.Buffer
	zip, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err == nil {
		_, err = zip.Write(layer)
	}
	if err == nil {
		err = zip.Close()
	}
	if err != nil {
		return nil, err
	}
	config := im.blob(configType, object{
		"architecture": arch, "os": "linux", "created": im.time,
		"config": object{
			"User":         user,
			"Env":          []string{"PATH=/usr/bin"},
			"Entrypoint":   []string{"/usr/bin/understudy"},
			"Cmd":          []string{"serve"},
			"WorkingDir":   "/",
			"StopSignal":   "SIGTERM",
			"ExposedPorts": object{"25/tcp": object{}, "9625/tcp": object{}, "9626/tcp": object{}},
			"Volumes":      object{"/var/lib/understudy": object{}},
			"Labels":       im.labels(),
		},
		"rootfs":  object{"type": "layers", "diff_ids": []string{digest(layer)}},
		"history": []object{{"created": im.time, "created_by": "make image"}},
	})
	return im.blob(manifestType, object{"schemaVersion": 2, "mediaType": manifestType, "config": config,
		"layers": []object{im.add(layerType, packed.Bytes())}}), nil
}

// layer is the file system. A volume takes over the directories' owners.
func (im *image) layer(program string) ([]byte, error) {
	var a archive
	a.begin(im.time)
	for _, d := range []string{"etc", "etc/ssl", "etc/ssl/certs", "etc/understudy", "usr", "usr/bin", "usr/share", "usr/share/doc", "usr/share/doc/understudy", "var", "var/lib"} {
		a.dir(d, 0o755, 0)
	}
	a.dir("var/lib/understudy", 0o700, uid)
	a.file("etc/passwd", fmt.Appendf(nil, "root:x:0:0:root:/:/sbin/nologin\nunderstudy:x:%d:%[1]d:Understudy:/var/lib/understudy:/sbin/nologin\n", uid), 0o644)
	a.file("etc/group", fmt.Appendf(nil, "root:x:0:\nunderstudy:x:%d:\n", uid), 0o644)
	for _, f := range []struct {
		from, to string
		mode     int64
	}{{im.certs, "etc/ssl/certs/ca-certificates.crt", 0o644}, {im.licence, "usr/share/doc/understudy/copyright", 0o644}, {program, "usr/bin/understudy", 0o755}} {
		b, err := os.ReadFile(f.from)
		if err != nil {
			return nil, err
		}
		a.file(f.to, b, f.mode)
	}
	return a.end()
}

func (im *image) labels() object {
	return object{
		"org.opencontainers.image.title":       "understudy",
		"org.opencontainers.image.description": "A backup MX that gives every sender the answer your primary would have given.",
		"org.opencontainers.image.source":      "https://github.com/understudy-mx/understudy",
		"org.opencontainers.image.licenses":    "MIT",
		"org.opencontainers.image.version":     im.version,
		"org.opencontainers.image.revision":    im.revision,
		"org.opencontainers.image.created":     im.time.Format(time.RFC3339),
	}
}

// blob stores a document.
func (im *image) blob(mediaType string, o object) object { return im.add(mediaType, encode(o)) }

// add stores octets under their digest and returns their descriptor.
func (im *image) add(mediaType string, b []byte) object {
	d := digest(b)
	im.blobs.file("blobs/sha256/"+strings.TrimPrefix(d, "sha256:"), b, 0o644)
	return object{"mediaType": mediaType, "digest": d, "size": len(b)}
}

func digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

func encode(o object) []byte {
	b, err := json.Marshal(o) // its keys are sorted
	if err != nil {
		panic(err) // what was put in above can be encoded
	}
	return b
}

// archive is a tar of files that all have one time.
type archive struct {
	buf  bytes.Buffer
	tar  *tar.Writer
	time time.Time
	err  error // the first one
}

func (a *archive) begin(t time.Time) { a.tar, a.time = tar.NewWriter(&a.buf), t }

func (a *archive) dir(name string, mode int64, owner int) {
	a.put(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode, Uid: owner, Gid: owner}, nil)
}

func (a *archive) file(name string, b []byte, mode int64) {
	a.put(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(b))}, b)
}

func (a *archive) put(h *tar.Header, b []byte) {
	h.ModTime = a.time
	if a.err == nil {
		a.err = a.tar.WriteHeader(h)
	}
	if a.err == nil {
		_, a.err = a.tar.Write(b)
	}
}

func (a *archive) end() ([]byte, error) {
	if a.err == nil {
		a.err = a.tar.Close()
	}
	return a.buf.Bytes(), a.err
}
