package scep

// DecodeMessage is for FuzzQuery.
var DecodeMessage = decodeMessage
