package user

import (
	"testing"

	"github.com/understudy-mx/understudy/test/mutants/testdata/little"
)

func TestLent(t *testing.T) {
	if little.Lent() != 3 {
		t.Error("Lent")
	}
}
