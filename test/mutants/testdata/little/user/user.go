// Package user has tests of another package.
package user
