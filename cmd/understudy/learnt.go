package main

import (
	"log/slog"
	"path/filepath"
	"time"

	"github.com/understudy-mx/understudy/policy/greylist"
	policysync "github.com/understudy-mx/understudy/sync"
)

// learnt tells the primary what greylisting has learnt.
type learnt struct{ store *greylist.Store }

// Learnt is policysync.Learnt's.
func (l learnt) Learnt(most int) (all []policysync.Passed) {
	for _, e := range l.store.Learnt(most) {
		p := policysync.Passed{Service: e.Service, Kind: e.Kind, Key: e.Key, Last: e.Last.Unix(), Count: e.Count}
		if !e.First.IsZero() {
			p.First = e.First.Unix()
		}
		all = append(all, p)
	}
	return all
}

// Told is policysync.Learnt's.
func (l learnt) Told(all []policysync.Passed) { l.store.Told(entries(all)) }

// learn opens what the secondaries have let in, and returns who adds to it.
func (p *publication) learn(dir string, log *slog.Logger) func(from string, all []policysync.Passed) {
	var err error
	if p.learned, err = greylist.OpenLearned(filepath.Join(dir, "passed.json")); err != nil {
		log.Error("whom secondaries have let in is lost in part", "err", err)
	}
	return func(from string, all []policysync.Passed) {
		if err := p.learned.Add(entries(all)); err != nil {
			log.Error("keep whom a secondary has let in", "name", from, "err", err)
		}
	}
}

func entries(all []policysync.Passed) (list []greylist.Entry) {
	for _, p := range all {
		e := greylist.Entry{Service: p.Service, Kind: p.Kind, Key: p.Key, Count: p.Count, Last: time.Unix(p.Last, 0).UTC(), Passed: true}
		if p.Kind == greylist.Triplet {
			e.First = time.Unix(p.First, 0).UTC()
		}
		list = append(list, e)
	}
	return list
}
