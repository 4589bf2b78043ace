package operator

import "time"

// Filter is how a filter is that stands for a milter of the primary's.
type Filter struct {
	Name    string    `json:"name"`
	For     string    `json:"for"`
	Away    bool      `json:"away"`
	Since   time.Time `json:"since,omitzero"`
	Error   string    `json:"error,omitempty"`
	Asked   uint64    `json:"messages"`
	Refused uint64    `json:"refused"`
	Dropped uint64    `json:"edits_dropped"`
	Unasked uint64    `json:"unavailable"`
	Idle    bool      `json:"idle"`
}
