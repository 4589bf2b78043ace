package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/understudy-mx/understudy/internal/config"
	"github.com/understudy-mx/understudy/policy/postfix"
)

// learnedFile keeps what the primary's tables that can't be listed answered.
// Only a cache: without it they are asked again.
func learnedFile(cfg *config.Config) string { return filepath.Join(publishDir(cfg), "learned.json") }

func loadLearned(cfg *config.Config) (*postfix.Learned, error) {
	l := &postfix.Learned{}
	b, err := os.ReadFile(learnedFile(cfg))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) { // a check by anybody else than the publisher
		return l, nil
	}
	if err == nil {
		err = json.Unmarshal(b, l)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w; remove it to ask the tables anew", learnedFile(cfg), err)
	}
	return l, nil
}

func (p *publisher) saveLearned() error {
	b, err := json.Marshal(p.learned)
	if err != nil || bytes.Equal(b, p.saved) || len(p.learned.Tables) == 0 && p.saved == nil {
		return err
	}
	if err := writeFile(learnedFile(p.cfg), b); err != nil {
		return fmt.Errorf("keep what was learned: %w", err)
	}
	p.saved = b
	return nil
}
