package sqlast

import (
	"slices"
	"strings"
)

// Conjuncts are the conditions that all hold where the expression does.
func (e *Expr) Conjuncts() (all []*Expr) {
	if e.Op != OpAnd {
		return []*Expr{e}
	}
	for _, a := range e.Args {
		all = append(all, a.Conjuncts()...)
	}
	return all
}

// MayAggregate says that an expression may look at many rows.
func (e *Expr) MayAggregate() bool {
	return e.Op == OpCall && (e.Window || !scalarFunctions[e.Name]) || slices.ContainsFunc(e.Args, (*Expr).MayAggregate)
}

// Scalar says that a function looks at one row alone.
func Scalar(name string) bool { return scalarFunctions[name] }

// scalarFunctions make one value of one row. A function that isn't here may
// make one of many rows, or of none.
var scalarFunctions = func() map[string]bool {
	set := map[string]bool{}
	for _, f := range strings.Fields(`
		abs adddate ascii bin_to_uuid binary bit_length cast ceil ceiling char char_length character_length coalesce concat concat_ws convert
		crc32 curdate current_date current_timestamp current_user curtime database date date_add date_format date_part date_sub date_trunc datediff datetime day dayname
		elt encode decode export_set extract field find_in_set floor format from_unixtime glob greatest hex hour host if ifnull iif inet_aton inet_ntoa initcap insert instr
		isnull json_array json_extract json_object json_unquote json_value julianday lcase least left length like likelihood locate lower lpad ltrim make_set md5 mid minute
		mod month now nullif nvl octet_length ord position quote quote_literal rand random regexp_replace regexp_substr repeat replace reverse right round rpad rtrim second sha sha1
		sha2 sign soundex space split_part starts_with str_to_date strcmp strftime strpos substr substring substring_index sysdate time timediff timestamp to_char to_date
		to_timestamp translate trim trunc truncate typeof ucase unhex unicode unix_timestamp upper utc_timestamp uuid version week weekday year`) {
		set[f] = true
	}
	return set
}()
