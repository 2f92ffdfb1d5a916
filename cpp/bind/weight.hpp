// A weight matrix as Python hands it over: checked once, kept with the arrays that it lies in.
#pragma once

#include "bind/arrays.hpp"

namespace minicpm4 {

class Weight {
public:
    // layout: "rows" or "panels". Raises ValueError unless the arrays are those of formats/quant.py's table.
    Weight(const std::string& kind, const std::string& layout, i64 rows, i64 cols, i64 group, Input codes,
           OptionalInput scales, OptionalInput offsets, OptionalInput super_scales, OptionalInput super_offsets);

    const Matrix& matrix() const { return matrix_; }
    // Writes the same weights in panels to arrays of their shapes.
    void to_panels(Context& context, const Output& codes, const Output& scales, const OptionalOutput& offsets,
                   const OptionalOutput& super_scales, const OptionalOutput& super_offsets) const;

private:
    Matrix matrix_;
    Input codes_;
    OptionalInput scales_, offsets_, super_scales_, super_offsets_;
};

// The matrix of `weight`, if the kernels of `context` take its layout.
const Matrix& usable(const Context& context, const Weight& weight);

}  // namespace minicpm4
